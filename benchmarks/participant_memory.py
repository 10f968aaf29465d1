"""Peak memory of a participant that trains a quarter of a 300M-parameter transformer, beside full training.

Every row is a process of its own; its peak is what the system counted (ru_maxrss). The model's initial
values are made shard by shard into a sharded safetensors checkpoint, and the participant reads only the
slices of its windows from it. Needs about 8 GB of memory, for full training, and 7 GB of disk.

    python benchmarks/participant_memory.py
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a process imports is part of its memory
    from torch.utils.data import TensorDataset

    from msfusion.learn.disk_store import DiskStore
    from msfusion.learn.learner import Learner
    from msfusion.learn.local import Train

SIZES = {"layers": 24, "heads": 16, "embed": 1024, "block": 128, "vocabulary": 8192, "tie": True}
SHARE = 0.25
BATCH, STEPS = 2, 2
SHARD_BYTES = 200_000_000
ROLES = {
    "nothing": "imports only",
    "initial": "initial values, written shard by shard",
    "full": "full training",
    "participant": "participant: pull, train, hand over",
    "merge": "merge of its contribution into the checkpoint",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=ROLES)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.role:
        start = time.perf_counter()
        facts = globals()[arguments.role](arguments.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**facts, "peak": peak, "seconds": time.perf_counter() - start}))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = {role: measured(role, folder) for role in ROLES}
    print(text(results))


def measured(role: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--role", role, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def text(results: dict[str, dict[str, Any]]) -> str:
    base, full = results["nothing"]["peak"], results["full"]["peak"]
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores; gpt with {SIZES}: {results['full']['parameters']:,}"
        f" parameters in float32, AdamW, {STEPS} steps of {BATCH} x {SIZES['block']} tokens,"
        f" {results['initial']['shards']} shards",
        "",
        "| process | parameters held | peak memory | of it above the imports | of full training | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for role, name in ROLES.items():
        one = results[role]
        lines.append(
            f"| {name} | {one.get('parameters', 0):,} | {one['peak'] / 1e9:.2f} GB |"
            f" {(one['peak'] - base) / 1e9:.2f} GB | {(one['peak'] - base) / (full - base):.0%} |"
            f" {one['seconds']:.0f} |"
        )
    cost = results["participant"]["cost"]
    lines += ["", f"`msfusion plan` counts {cost / 1e9:.2f} GB for the participant beyond the imports."]
    return "\n".join(lines)


def nothing(folder: Path) -> dict[str, float]:
    import msfusion.learn.disk_store
    import msfusion.learn.learner
    import msfusion.models  # noqa: F401

    return {}


def initial(folder: Path) -> dict[str, float]:
    from msfusion.learn.initial import write_initial
    from msfusion.models import build

    shards = write_initial(lambda: build("gpt", None, SIZES)[0], folder / "checkpoint", 0, SHARD_BYTES)
    return {"shards": len(shards.files)}


def full(folder: Path) -> dict[str, float]:
    import torch

    from msfusion.capture.graph import named_tensors
    from msfusion.learn.local import train
    from msfusion.learn.objective import Objective
    from msfusion.learn.shards import Shards
    from msfusion.learn.submodels import materialised
    from msfusion.models import build_without_values

    torch.set_num_threads(os.cpu_count() or 1)
    module = materialised(build_without_values("gpt", None, SIZES)[0], torch.device("cpu"))
    shards = Shards(folder / "checkpoint")
    with torch.no_grad():
        for name, tensor in named_tensors(module).items():
            tensor.copy_(shards[name])
            shards.release()
    train(module, tokens(), Objective(), settings(), 1e-4, 0)
    return {"parameters": sum(p.numel() for p in module.parameters())}


def participant(folder: Path) -> dict[str, float]:
    import torch
    from safetensors.torch import save_file

    from msfusion.learn.learner import Participant

    torch.set_num_threads(os.cpu_count() or 1)
    learner, plan, store = parts(folder)
    one = Participant(0, tokens(), plan)
    windows = learner.windows(0, one)
    values = store.pull(0, windows, learner.submodels.room(windows))  # into the module itself
    contribution, _, _ = learner.train(0, one, windows, values, lend=True)
    save_file(dict(contribution.values), folder / "contribution.safetensors")
    held = learner.submodels.parameters(plan)
    return {"parameters": held, "cost": learner.cost(one, plan).memory_bytes}


def merge(folder: Path) -> dict[str, float]:
    from safetensors.torch import load_file

    from msfusion.core.merge import Contribution
    from msfusion.learn.learner import Participant

    learner, plan, store = parts(folder)
    windows = learner.windows(0, Participant(0, tokens(), plan))
    values = load_file(folder / "contribution.safetensors")
    store.push(Contribution(0, windows, values, weight=1.0))
    store.commit(1.0)
    return {"parameters": sum(value.numel() for value in values.values())}


def parts(folder: Path) -> "tuple[Learner, dict[str, int], DiskStore]":
    """Learner, width plan and store of a model that this process never holds."""
    import torch

    from msfusion.capture import capture
    from msfusion.core.widths import for_share
    from msfusion.learn.disk_store import DiskStore
    from msfusion.learn.learner import Learner
    from msfusion.learn.methods import Setting, get_method
    from msfusion.learn.objective import Objective
    from msfusion.learn.submodels import SubModels
    from msfusion.models import build_without_values

    module, example = build_without_values("gpt", None, SIZES)
    captured = capture(module, example)
    names = [name for name, _ in module.named_parameters()]
    method = get_method("msfusion")
    plan = for_share(captured.axes, names, SHARE, method.cut or "all")
    schedule = method.schedule(Setting(captured.axes, plan, 10, 0))
    submodels = SubModels(captured, example, torch.device("cpu"), method.scale_power)
    learner = Learner(schedule, submodels, Objective(), settings(), rounds=1, seed=0)
    store = DiskStore(
        folder / "checkpoint", folder / "store", captured.axes, frozenset(names), shard_bytes=SHARD_BYTES
    )
    return learner, plan, store


def settings() -> "Train":
    from msfusion.learn.local import Train

    return Train(optimizer="adamw", lr=1e-4, batch=BATCH, steps=STEPS)


def tokens() -> "TensorDataset":
    import torch
    from torch.utils.data import TensorDataset

    drawn = torch.randint(
        int(SIZES["vocabulary"]), (8, int(SIZES["block"]) + 1), generator=torch.Generator().manual_seed(0)
    )
    return TensorDataset(drawn[:, :-1], drawn[:, 1:])


if __name__ == "__main__":
    main()
