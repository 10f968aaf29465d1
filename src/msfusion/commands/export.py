"""``msfusion export``: the full model of a run as a file."""

from pathlib import Path

from safetensors.torch import save_file

from msfusion.commands.output import emit
from msfusion.errors import UserError
from msfusion.learn.methods import get_method
from msfusion.runtimes import checkpoint


def run(source: Path, out: Path, *, json: bool) -> None:
    """Write the parameters and buffers of the last checkpoint; tied tensors once."""
    tensors, facts = checkpoint.load(source)
    method = facts["settings"]["method"]
    if (evaluated := get_method(method).evaluated) != "full":
        raise UserError(
            f"expected a run that trains the full model, got one of {method}, which trains {evaluated} models"
        )
    model = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model/")}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model, out, metadata={"format": "pt"})
    total = sum(tensor.numel() for tensor in model.values())
    emit({"out": str(out), "tensors": len(model), "values": total}, f"{out}: {len(model)} tensors", json=json)
