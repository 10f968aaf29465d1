"""The full model of a version in files, which no memory has to hold."""

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from msfusion.errors import UserError
from msfusion.learn.shards import Shards, Spec, create, is_checkpoint_file, sync
from msfusion.peers.member import Member
from msfusion.peers.network import Network
from msfusion.peers.pieces import Wanted
from msfusion.peers.states import Version
from msfusion.peers.stock import Stock
from msfusion.peers.strip import Strip


def model_folder(folder: Path, peer: Path) -> Path:
    """The folder that a ``Gathering`` is to replace, where links lead to. UserError where it cannot be
    written, or where more would be replaced than a model that was written there before.

    peer: the peer's own folder.
    """
    folder = folder.resolve()
    try:
        is_file = folder.is_file()
        above = next(parent for parent in folder.parents if parent.exists())
    except PermissionError as error:
        raise UserError(
            f"expected to write the full model to {folder}, but {error.filename} cannot be read: name another"
        ) from None
    if is_file:
        raise UserError(f"expected a folder for the full model, got the file {folder}: name another one")
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"expected to write the full model to {folder}, but not below {above}: name another")
    if peer.resolve().is_relative_to(folder):
        raise UserError(
            f"expected a folder for the full model outside {folder}, where {peer} is: name another"
        )
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if other := next((file for file in files if not is_checkpoint_file(file.name)), None):
        raise UserError(
            "expected a folder that is empty, absent or holds a model alone, as it is replaced, got "
            f"{folder} with {other.name} in it: name another one"
        )
    return folder


class Gathering:
    """Gathers versions that the group still works on."""

    def __init__(self, stock: Stock, member: Member, network: Network) -> None:
        self._layout, self._disk, self._course = stock.layout, stock.disk, stock.course
        self._member, self._network = member, network

    def into(self, folder: Path, version: Version, buffers: Mapping[str, Tensor]) -> Shards:
        """Write parameters and buffers of a version into safetensors files in ``folder``, which is replaced:
        shards of one's own from the disk, the others from their holders, one at a time. Raises Disturbed
        where the group has gone on."""
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        specs = {**self._layout.tensors, **{name: Spec.of(value) for name, value in buffers.items()}}
        whole = create(draft, specs)
        for shard in range(len(self._layout)):
            self._fill(whole, version, shard)
            whole.release()
            self._disk.release()
        for name, value in buffers.items():
            whole[name].copy_(value)
        whole.sync()
        for path in whole.files:
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        return Shards(folder)

    def _fill(self, whole: Shards, version: Version, shard: int) -> None:
        places = {
            piece.name: place[piece.start : piece.stop] if (place := whole[piece.tensor]).ndim else place
            for piece in self._layout.shards[shard]
        }
        if self._disk.has(version, shard):
            held = self._disk.shard(version, shard)
            for name, place in places.items():
                place.view(held[name].shape).copy_(held[name])
        else:
            sources = partial(self._member.sources, version, shard)
            wanted = Wanted(sources, f"shard/{version.text}/{shard}", Strip(places.values()))
            self._network.fetch([wanted], lambda: self._at_hand(version))

    def _at_hand(self, version: Version) -> bool:
        """Whether peers still keep a version: that which they work on, or the one before."""
        at, history = self._course.stand
        before = at.round == version.round + 1 and history.parent == version.lineage
        return self._member.error is None and (at == version or before)
