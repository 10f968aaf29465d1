"""The full model on disk: pulls read slices, a commit writes the next checkpoint beside the last."""

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from mmap import MADV_DONTNEED, mmap
from pathlib import Path

import torch
from torch import Tensor

from msfusion.core.axes import AxisMap, Selection
from msfusion.core.cut import Cuts, Rows
from msfusion.core.merge import Contribution, Merge, Shift, row_blocks, squares
from msfusion.core.momentum import Momentum
from msfusion.core.twins import Twins
from msfusion.errors import Diverged, UserError
from msfusion.learn.shards import SHARD_BYTES, Shards, Spec, create, move, scratch, sync

VELOCITY = "velocity"
_CURRENT = "CURRENT"
_COMMIT = "[0-9]{6}|[1-9][0-9]{6,}"  # names of the checkpoints
_COPIED = ("config.json", "generation_config.json")


def last_commit(directory: Path) -> Path | None:
    """The checkpoint of the last commit of a store in a directory; None where there is none."""
    current = directory / _CURRENT
    return directory / current.read_text().strip() if current.exists() else None


class DiskStore:
    """A store whose model no participant, and not even this process, could hold in memory.

    It starts from ``source``, a safetensors file or a sharded checkpoint (a pretrained one, or one that
    ``write_initial`` made), which it never changes. Every commit writes a whole checkpoint into
    ``directory`` and then points the file CURRENT to it, so that a crash at any moment leaves the model as it
    was after the last commit that returned; contributions pushed since then are lost with the process. A
    store opened on a directory with a CURRENT goes on from there. Disk: the model twice, and the sums of a
    round's contributions in files without a name. Memory: what one participant hands over, and blocks of 16
    MB; file pages come and go as the kernel sees fit.

    parameters: which tensors participants train.
    names: parameter or buffer name -> its name in the checkpoint, where the two differ.
    buffers: values of buffers that the checkpoint does not hold; they stay in memory.
    shard_bytes: about how long a file of a checkpoint may be.
    measure: whether the model shift is measured.
    twins: units that share their changes; a commit then takes three times the memory of the largest tensor.
    decay: of server momentum, whose velocities lie in the folder VELOCITY of every checkpoint; 0 for none.
    """

    def __init__(
        self,
        source: Path,
        directory: Path,
        axes: AxisMap,
        parameters: frozenset[str],
        *,
        names: Mapping[str, str] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        shard_bytes: int = SHARD_BYTES,
        measure: bool = False,
        decay: float = 0.0,
        twins: Twins | None = None,
    ) -> None:
        self._measure, self._decay, self._twins = measure, decay, twins
        self._directory = directory
        self._axes = axes
        self._cuts = Cuts(axes)
        self._parameters = sorted(parameters)
        self._names = dict(names or {})
        self._buffers = dict(buffers or {})
        self._shard_bytes = shard_bytes
        directory.mkdir(parents=True, exist_ok=True)
        last = last_commit(directory)
        self.path = last or source
        self.commits = int(last.name) if last else 0
        self._shards = Shards(self.path)
        self._check()
        self.discard()

    def pull(
        self, participant: int, selection: Selection, into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        values = {}
        cut = self._cuts.of(selection)
        for name in self._axes.tensors:
            values[name] = cut(name).take(self._full(name), None if into is None else into[name])
            self._shards.release()
        return values

    def push(self, contribution: Contribution) -> None:
        self._merge.check(contribution)
        for name, value in contribution.values.items():
            self._merge.add(replace(contribution, values={name: value}))
            self._release()

    def change(self, contribution: Contribution) -> float:
        """How far a contribution lies from the values that it began with, root mean square; raises UserError
        where it is not acceptable."""
        self._merge.check(contribution)
        cut = self._cuts.of(contribution.selection)
        total, count = 0.0, 0
        for name, value in contribution.values.items():
            total += float(squares(cut(name).take(self._full(name)) - value))
            count += value.numel()
            self._shards.release()
        if not math.isfinite(total):
            raise Diverged("expected a change whose square is finite, got one that is not")
        return math.sqrt(total / max(1, count))

    def commit(
        self, step: float, seal: Callable[[Path, Shift | None], None] = lambda folder, shift: None
    ) -> Shift | None:
        """Merge what was pushed since the last commit into the next checkpoint. Where that would hold values
        that are not finite, the last checkpoint stays, what was pushed is forgotten, and Diverged says why.

        seal: called with the folder of the complete checkpoint (the last one, where nothing was pushed) and
        the model shift, before the folder takes the last one's place: files that it puts there count if and
        only if the merge does.
        """
        shift = self._merge.shift()
        try:
            if shift and not math.isfinite(shift.size):
                raise Diverged("expected a model shift that is finite, got one that is not")
            if self._maps:
                self._write(self._merged(step), lambda folder: seal(folder, shift))
            else:
                seal(self.path, shift)
        except Diverged:
            self._remove_all_but(self.path)
            raise
        finally:
            self.discard()
        return shift

    def discard(self) -> None:
        self._maps: list[mmap] = []
        trained = {name: self._full(name) for name in self._parameters}
        self._merge = Merge(
            trained,
            self._axes,
            self._zeros,
            measure=self._measure,
            cuts=self._cuts,
            twins=self._twins,
        )

    def state(self) -> Mapping[str, Tensor]:
        return {name: self._full(name) for name in self._axes.tensors}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._write(
            (self._stored(name), rows, state[name][rows])
            for name in self._axes.tensors
            if self._stored(name) in self._shards
            for rows in row_blocks(tuple(state[name].shape))
        )
        self._buffers = {name: state[name].clone() for name in self._buffers}
        self.discard()

    def _stored(self, name: str) -> str:
        return self._names.get(name, name)

    def _full(self, name: str) -> Tensor:
        stored = self._stored(name)
        return self._shards[stored] if stored in self._shards else self._buffers[name]

    def _check(self) -> None:
        for name in self._axes.tensors:
            stored, want = self._stored(name), self._axes.shape(name, {})
            if stored not in self._shards and name not in self._buffers:
                raise UserError(f"expected {stored} in {self.path}, found none: it is of another model")
            got = tuple(self._full(name).shape)
            if got != want:
                raise UserError(f"expected {stored} of shape {want} in {self.path}, got {got}: another model")

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        tensor, mapped = scratch(self._directory, shape, dtype)
        if mapped is not None:
            self._maps.append(mapped)
        return tensor

    def _release(self) -> None:
        self._shards.release()
        for mapped in self._maps:
            mapped.madvise(MADV_DONTNEED)

    def _merged(self, step: float) -> Iterator[tuple[str, Rows, Tensor]]:
        velocity = self._velocity() if self._decay else None
        momentum = None if velocity is None else Momentum(self._decay, velocity)
        for name, rows, new in self._merge.moved(step, momentum):
            if not new.isfinite().all():
                raise Diverged(f"expected merged values that are finite, got NaN or infinity in {name}")
            yield self._stored(name), rows, new
            if velocity is not None:
                velocity.release()
        if velocity is not None:
            velocity.sync()

    def _velocity(self) -> Shards:
        """Velocities of the next checkpoint, which as yet are those of this one."""
        specs = {name: Spec.of(self._full(name)).wide for name in self._parameters}
        new = create(self._following / VELOCITY, specs, self._shard_bytes)
        if (self.path / VELOCITY).exists():
            _copy(Shards(self.path / VELOCITY), new, specs)
        return new

    @property
    def _following(self) -> Path:
        return self._directory / f"{self.commits + 1:06d}"

    def _write(
        self,
        changes: Iterator[tuple[str, Rows, Tensor]],
        seal: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """The next checkpoint: this one with ``changes``, (stored name, rows, values) in blocks."""
        following = self._following
        self._remove_all_but(self.path)
        specs = {name: Spec.of(tensor) for name, tensor in self._shards.items()}
        new = create(following, specs, self._shard_bytes)
        written = set()
        for name, rows, values in changes:
            new[name][rows] = values
            written.add(name)
            new.release()
            self._release()
        _copy(self._shards, new, {name: spec for name, spec in specs.items() if name not in written})
        for name in _COPIED:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, following / name)
        new.sync()
        seal(following)
        self._point_to(following)
        self.path, self.commits, self._shards = following, self.commits + 1, Shards(following)
        self._remove_all_but(following)

    def _point_to(self, folder: Path) -> None:
        draft = self._directory / f"{_CURRENT}.draft"
        draft.write_text(folder.name)
        for path in (folder, *folder.rglob("*")):
            sync(path)
        move(draft, self._directory / _CURRENT)

    def _remove_all_but(self, kept: Path) -> None:
        """Checkpoints of earlier rounds, and one that a crash left unfinished."""
        for path in self._directory.iterdir():
            if path.is_dir() and re.fullmatch(_COMMIT, path.name) and path != kept:
                shutil.rmtree(path)


def _copy(old: Shards, new: Shards, specs: Mapping[str, Spec]) -> None:
    """Copy tensors in blocks, none of which stays in memory."""
    for name, spec in specs.items():
        for rows in row_blocks(spec.shape):
            new[name][rows] = old[name][rows]
            new.release()
            old.release()
