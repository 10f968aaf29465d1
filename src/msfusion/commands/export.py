"""``msfusion export``: the full model of a run, as a file or as a folder that ``from_pretrained`` loads."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from msfusion.commands.output import emit
from msfusion.errors import UserError
from msfusion.learn.disk_store import last_commit
from msfusion.learn.methods import check_makes_full
from msfusion.learn.shards import Shards
from msfusion.models.hugging_face import PREFIX, save_pretrained
from msfusion.runtimes import checkpoint


def run(source: Path, out: Path, *, shard: str | None, json: bool) -> None:
    """Write the parameters and persistent buffers of the last checkpoint, tied tensors once.

    out: a file FILE.safetensors, or for a model of Hugging Face also a folder.
    shard: largest size of one file in a folder; None for 5 GB.
    """
    model, facts = _saved(source)
    check_makes_full(facts["settings"]["method"])
    if out.suffix == ".safetensors":
        _check_model_file_at(out)
        if shard is not None:
            warnings.warn("--shard has no effect here: it is for models written as folders", stacklevel=2)
        checkpoint.write(out, model, {"format": "pt"})
    else:
        _write_folder(model, facts["settings"], out, shard or "5GB")
    total = sum(tensor.numel() for tensor in model.values())
    emit({"out": str(out), "tensors": len(model), "values": total}, f"{out}: {len(model)} tensors", json=json)


def _saved(source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model of a run's last checkpoint and what that says beside it; also of a run under Flower."""
    if folder := last_commit(source / "model"):
        return dict(Shards(folder)), checkpoint.load(folder)[1]
    tensors, facts = checkpoint.load(source)
    own = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model/")}
    return {name: tensor for name, tensor in own.items() if name not in facts.get("transient", ())}, facts


def _check_model_file_at(out: Path) -> None:
    if out.exists() and not (out.is_file() and checkpoint.is_model(out)):
        raise UserError(
            f"expected a file that is absent or a model in safetensors, got {out}: name another one"
        )


def _write_folder(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], out: Path, shard: str) -> None:
    model = settings.get("model", {"name": "a module of your own", "options": {}})
    if not model["name"].startswith(PREFIX):
        raise UserError(
            f"expected a file such as {out.with_suffix('.safetensors')} for {model['name']}, got {out}: only "
            f"models named as {PREFIX}PATH are written as folders"
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"expected a folder that is empty or absent, got {out}: name another one")
    save_pretrained(model["name"], model["options"], tensors, out, shard)
