"""The full model of a version in files, which no memory has to hold."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from msfusion.errors import UserError
from msfusion.learn.shards import Shards, Spec, create, is_checkpoint_file, sync
from msfusion.peers.agreement import Version
from msfusion.peers.disk import Disk
from msfusion.peers.layout import Layout
from msfusion.peers.member import Member
from msfusion.peers.network import Network
from msfusion.peers.pieces import Wanted
from msfusion.peers.strip import Strip


def check_replaceable(folder: Path) -> None:
    """Raise UserError where ``gather`` would replace more than a model that was written there before."""
    if folder.is_file():
        raise UserError(f"expected a folder for the full model, got the file {folder}: name another one")
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if other := next((file for file in files if not is_checkpoint_file(file.name)), None):
        raise UserError(
            "expected a folder that is empty, absent or holds a model alone, as it is replaced, got "
            f"{folder} with {other.name} in it: name another one"
        )


def gather(
    folder: Path,
    version: Version,
    layout: Layout,
    disk: Disk,
    buffers: Mapping[str, Tensor],
    member: Member,
    network: Network,
    valid: Callable[[], bool],
) -> Shards:
    """Write parameters and buffers of a version into safetensors files in ``folder``, which is replaced:
    shards of one's own from the disk, the others from their holders, one at a time. Raises Disturbed when
    ``valid`` says no."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    specs = {**layout.tensors, **{name: Spec.of(value) for name, value in buffers.items()}}
    whole = create(draft, specs)
    for shard in range(len(layout)):
        places = {
            piece.name: place[piece.start : piece.stop] if (place := whole[piece.tensor]).ndim else place
            for piece in layout.shards[shard]
        }
        if disk.has(version, shard):
            held = disk.shard(version, shard)
            for name, place in places.items():
                place.view(held[name].shape).copy_(held[name])
        else:
            wanted = Wanted(
                partial(member.sources, version, shard),
                f"shard/{version.text}/{shard}",
                Strip(places.values()),
            )
            network.fetch([wanted], valid)
        whole.release()
        disk.release()
    for name, value in buffers.items():
        whole[name].copy_(value)
    whole.sync()
    for path in whole.files:
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return Shards(folder)
