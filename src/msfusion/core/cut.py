"""Where a selection lies in a tensor, and what is copied and added there.

A window is at most two runs of positions per dimension, three where an axis meets itself, so a cut is a few
rectangular pieces, copied as slices; scattered units (the random sub-model) go through one index per
dimension.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, product
from types import EllipsisType

import torch
from torch import Tensor

from msfusion.core.axes import (
    Axis,
    AxisMap,
    Concat,
    Dim,
    Fixed,
    Product,
    Selection,
    Units,
    count,
    positions,
)

Slices = tuple[slice, ...]

Rows = slice | EllipsisType
"""Indices of the first dimension, or all of a tensor that has none."""

_MOST_PIECES = 64  # more slices than this are slower than one index per dimension
_MOST_SELECTIONS = 64  # whose cuts are kept: those of a group that trains at once
_MOST_CUTS = 512  # in few pieces that are kept: windows come again, and tensors are cut alike
_BLOCK = 1 << 18  # elements that are worked on at once: on a CPU they stay in the cache,
_BLOCK_GPU = 1 << 24  # on a GPU they are worth the launch


@dataclass(frozen=True)
class Cut:
    """Where a selection lies in a tensor.

    full: shape of the tensor.
    shape: of the tensor that is cut out.
    places: per dimension, the positions that are kept.
    pieces: (slices of the full tensor, slices of the one that is cut out) for every rectangular piece; None
    where they are too many.
    """

    full: tuple[int, ...]
    shape: tuple[int, ...]
    places: tuple[Units, ...]
    pieces: tuple[tuple[Slices, Slices], ...] | None

    @staticmethod
    def of(dims: tuple[Dim, ...], selection: Selection) -> "Cut":
        """The cut of a tensor that follows ``dims``."""
        return Cut.at(tuple(positions(dim, selection) for dim in dims), tuple(dim.size for dim in dims))

    @staticmethod
    def at(places: tuple[Units, ...], full: tuple[int, ...]) -> "Cut":
        """The cut at ``places`` of a tensor of the shape ``full``."""
        if math.prod(map(len, places)) <= _MOST_PIECES:
            return _in_pieces(places, full)
        return Cut(full, tuple(map(count, places)), places, None)

    @cached_property
    def table(self) -> tuple[tuple[int, ...], "Cut"]:
        """Shape of a table with one entry along each dimension that is whole, and where the selection lies
        in it."""
        whole = [runs == ((0, size),) for runs, size in zip(self.places, self.full, strict=True)]
        shape = tuple(1 if all_of_it else size for all_of_it, size in zip(whole, self.full, strict=True))
        places = tuple(
            ((0, 1),) if all_of_it else runs for all_of_it, runs in zip(whole, self.places, strict=True)
        )
        return shape, Cut.at(places, shape)

    def take(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """Copy the positions of a full tensor into ``out``, by default a new contiguous one."""
        if self.pieces is None:
            for d, runs in enumerate(self.places):
                if runs != ((0, tensor.shape[d]),):
                    tensor = tensor.index_select(d, index(runs, tensor.device))
            return tensor if out is None else out.copy_(tensor)
        if out is None:
            out = tensor.new_empty(self.shape)
        for full, sub in self.pieces:
            out[sub] = tensor[full]
        return out

    def add(self, total: Tensor, part: Tensor | float) -> None:
        """``total[positions] += part``."""
        if self.pieces is None:
            total[self._grid(total.device)] += part
            return
        for full, sub in self.pieces:
            total[full].add_(part[sub] if isinstance(part, Tensor) else part)

    def add_change(
        self, total: Tensor, value: Tensor, part: Tensor, weight: float, room: Tensor
    ) -> Iterator[Tensor]:
        """``total[positions] += weight * (value[positions] - part)``, block by block; yields the differences,
        each valid until the next.

        room: where they are made, of the type of ``total`` and of ``block_size`` elements.
        """
        if self.pieces is None:
            moved = self.take(value).to(total.dtype) - part.to(total.dtype)
            total[self._grid(total.device)] += moved * weight
            yield moved
            return
        alike = value.dtype == part.dtype == total.dtype
        for full, sub in self.pieces:
            for into, old, new in _blocks(room.numel(), total[full], value[full], part[sub]):
                place = room[: into.numel()].view(into.shape)
                if not alike:
                    old, new = old.to(total.dtype), new.to(total.dtype)
                moved = torch.sub(old, new, out=place)
                into.add_(moved, alpha=weight)
                yield moved

    def _grid(self, device: torch.device) -> tuple[Tensor, ...]:
        return torch.meshgrid(*[index(runs, device) for runs in self.places], indexing="ij")


def room(like: Tensor) -> Tensor:
    """What ``add_change`` needs."""
    return like.new_empty(block_size(like.device))


def block_size(device: torch.device) -> int:
    """Elements that are worked on at once."""
    return _BLOCK if device.type == "cpu" else _BLOCK_GPU


class Cuts:
    """The cuts of a map's tensors; those of the last selections are kept."""

    def __init__(self, axes: AxisMap) -> None:
        kinds: dict[tuple[Dim, ...], int] = {}
        self._kind = {name: kinds.setdefault(dims, len(kinds)) for name, dims in axes.tensors.items()}
        self._dims = list(kinds)
        self._of: Callable[[tuple[tuple[str, Units], ...]], dict[int, Cut]] = lru_cache(_MOST_SELECTIONS)(
            lambda selected: {}
        )

    def of(self, selection: Selection) -> Callable[[str], Cut]:
        """Tensor -> its cut."""
        made = self._of(tuple(selection.items()))

        def cut(name: str) -> Cut:
            kind = self._kind[name]
            if kind not in made:
                made[kind] = Cut.of(self._dims[kind], selection)
            return made[kind]

        return cut


def overlay(base: Tensor, own: Selection, over: Tensor, other: Selection, dims: tuple[Dim, ...]) -> Tensor:
    """A copy of ``base``, cut by ``own``, with the values of ``over``, cut by ``other``, where both lie."""
    out = base.clone()
    shared = [_shared(positions(dim, own), positions(dim, other)) for dim in dims]
    if math.prod(map(len, shared)) > _MOST_PIECES:
        here, there = (_grid([[pair[side] for pair in pairs] for pairs in shared]) for side in (0, 1))
        out[here] = over[there]
        return out
    for piece in product(*shared):
        out[tuple(here for here, _ in piece)] = over[tuple(there for _, there in piece)]
    return out


def places_from(dim: Dim, unit_from: Callable[[Axis], Tensor]) -> Tensor:
    """For every index along a dimension whose axes have got other units, the index that it was; int64.

    dim: as it was. unit_from: for every unit that an axis has now, the one that it was.
    """
    match dim:
        case Axis():
            return unit_from(dim)
        case Product(factors=factors):
            places = torch.zeros(1, dtype=torch.int64)
            for factor in factors:
                places = (places[:, None] * factor.size + places_from(factor, unit_from)).flatten()
            return places
        case Concat(parts=parts):
            starts = accumulate((part.size for part in parts[:-1]), initial=0)
            each = zip(parts, starts, strict=True)
            return torch.cat([places_from(part, unit_from) + start for part, start in each])
        case Fixed(size=size):
            return torch.arange(size)


def index(runs: Units, device: torch.device) -> Tensor:
    """The positions in the runs, int64."""
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in runs])


def _grid(slices: list[list[slice]]) -> tuple[Tensor, ...]:
    columns = [torch.cat([torch.arange(s.start, s.stop) for s in column]) for column in slices]
    return torch.meshgrid(*columns, indexing="ij")


def _shared(own: Units, other: Units) -> list[tuple[slice, slice]]:
    """Where the positions that both have lie in the tensor of the first and in that of the second."""
    out = []
    at = 0
    for start, stop in own:
        there = 0
        for first, last in other:
            low, high = max(start, first), min(stop, last)
            if low < high:
                here = slice(at + low - start, at + high - start)
                out.append((here, slice(there + low - first, there + high - first)))
            there += last - first
        at += stop - start
    return out


@lru_cache(_MOST_CUTS)
def _in_pieces(places: tuple[Units, ...], full: tuple[int, ...]) -> Cut:
    return Cut(full, tuple(map(count, places)), places, tuple(_pieces(places, full)))


def _pieces(places: tuple[Units, ...], full: tuple[int, ...]) -> Iterator[tuple[Slices, Slices]]:
    """Slices of both tensors for every piece; those of whole dimensions at the end are left out."""
    cut = [d for d, (runs, size) in enumerate(zip(places, full, strict=True)) if runs != ((0, size),)]
    pairs = []
    for runs in places[: cut[-1] + 1 if cut else 0]:
        at, column = 0, []
        for start, stop in runs:
            column.append((slice(start, stop), slice(at, at + stop - start)))
            at += stop - start
        pairs.append(column)
    for piece in product(*pairs):
        yield tuple(full for full, _ in piece), tuple(sub for _, sub in piece)


def _blocks(size: int, first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, all of one shape, in blocks of at most ``size`` elements."""
    if first.numel() <= size:
        yield first, *others
        return
    rows = max(1, size * first.shape[0] // first.numel())
    for block in zip(*(torch.split(tensor, rows) for tensor in (first, *others)), strict=True):
        if rows > 1:
            yield block
        else:
            yield from _blocks(size, *(tensor[0] for tensor in block))
