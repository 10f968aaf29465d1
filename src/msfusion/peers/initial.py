"""Initial values of a run on a peer's disk."""

import shutil
from pathlib import Path

from torch import Tensor

from msfusion.core.seeds import derive
from msfusion.learn.initial import Start, write_initial
from msfusion.learn.shards import loaded
from msfusion.peers.disk import INITIAL, Disk
from msfusion.peers.states import Version
from msfusion.peers.task import Task
from msfusion.runtimes import checkpoint

_BUFFERS = "buffers.safetensors"


def make_initial(folder: Path, task: Task, disk: Disk, first: Version, start: Start | None) -> None:
    """Initial values straight into a file, as a simulation makes them; buffers are kept beside it.

    start: what a run does to the values before it begins.
    """
    if disk.committed() != first or (folder / INITIAL).exists():
        return
    draft = folder / f"{INITIAL}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    shards = write_initial(task.build, draft, derive(task.seed, "model"), start=start)
    buffers = {
        name: shards[name].clone() if name in shards else value.clone()
        for name, value in task.model.named_buffers()
    }
    if start:
        start({name: value for name, value in buffers.items() if name not in shards})
    checkpoint.write(folder / _BUFFERS, buffers, {})
    draft.rename(folder / INITIAL)


def buffers_in(folder: Path) -> dict[str, Tensor]:
    """The model's buffers, which no round changes."""
    return loaded(folder / _BUFFERS)
