"""Cut a sub-model's values out of the full model, and merge what participants hand back.

Both work on runs of positions: a window is at most two pieces per dimension, which are copied as slices;
scattered units (the random sub-model) go through one index per dimension.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import EllipsisType

import torch
from torch import Tensor

from msfusion.core.axes import Axis, AxisMap, Dim, Selection, Units, count, positions
from msfusion.errors import Diverged, UserError

Zeros = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]

Rows = slice | EllipsisType
"""Indices of the first dimension, or all of a tensor that has none."""

_MOST_PIECES = 64  # more slices than this are slower than one index per dimension


@dataclass(frozen=True)
class Contribution:
    """What a participant hands over after local training.

    selection: the units it trained.
    values: parameter name -> its values, in the shape of the sub-model.
    weight: its share in the merge, usually its number of examples; greater than 0.
    only: parameter name -> a dimension that is whole in every sub-model, and the positions along it that
    count; the others are as if it did not hold them (rows of the head for labels that it has never seen).
    """

    participant: int
    selection: Selection
    values: Mapping[str, Tensor]
    weight: float
    only: Mapping[str, tuple[int, Units]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shift:
    """How far contributions lie apart; both numbers add up over the parts of a model.

    spread: sum over parameters and contributions of weight x squared distance from the mean change.
    size: sum of the weights x squared mean change over the parameters that two or more have trained.
    """

    spread: float
    size: float

    @property
    def ratio(self) -> float | None:
        """Model shift: typical distance from the mean change over the typical mean change; None where nobody
        shared a parameter or nothing moved."""
        return math.sqrt(self.spread / self.size) if self.size > 0 else None


def extract(
    values: Mapping[str, Tensor], axes: AxisMap, selection: Selection, *, names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Copy the selected positions of each tensor (all of ``values``, or only ``names``)."""
    return {
        name: take(values[name], axes.tensors[name], selection)
        for name in (values if names is None else names)
    }


def take(tensor: Tensor, dims: tuple[Dim, ...], selection: Selection) -> Tensor:
    """A contiguous copy of the selected positions of a full tensor."""
    places = [positions(dim, selection) for dim in dims]
    if math.prod(map(len, places)) > _MOST_PIECES:
        for d, runs in enumerate(places):
            if runs != ((0, tensor.shape[d]),):
                tensor = tensor.index_select(d, _index(runs, tensor.device))
        return tensor
    out = tensor.new_empty([count(runs) for runs in places])
    for full, sub in _pieces(places):
        out[sub] = tensor[full]
    return out


def add_into(total: Tensor, dims: tuple[Dim, ...], selection: Selection, part: Tensor | float) -> None:
    """``total[selected positions] += part``, where a dimension of extent 1 in ``total`` is broadcast."""
    places = [
        positions(dim, selection) if extent == dim.size else ((0, 1),)
        for dim, extent in zip(dims, total.shape, strict=True)
    ]
    if math.prod(map(len, places)) > _MOST_PIECES:
        index = torch.meshgrid(*[_index(runs, total.device) for runs in places], indexing="ij")
        total[index] += part
        return
    for full, sub in _pieces(places):
        total[full] += part[sub] if isinstance(part, Tensor) else part


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


def _grid(slices: list[list[slice]]) -> tuple[Tensor, ...]:
    index = [torch.cat([torch.arange(s.start, s.stop) for s in column]) for column in slices]
    return torch.meshgrid(*index, indexing="ij")


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


def _index(runs: Units, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in runs])


def _pieces(places: list[Units]) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """(slices of the full tensor, slices of the sub-model's tensor) for every rectangular piece."""
    pairs = []
    for runs in places:
        at, column = 0, []
        for start, stop in runs:
            column.append((slice(start, stop), slice(at, at + stop - start)))
            at += stop - start
        pairs.append(column)
    for piece in product(*pairs):
        yield tuple(full for full, _ in piece), tuple(sub for _, sub in piece)


class Merge:
    """Weighted mean per parameter over the contributions that hold it.

    Contributions are added one by one and not kept: the memory is that of the sum of changes, whatever the
    number of participants. The mean is taken over changes, so a parameter that nobody held, or that nobody
    changed, keeps its value to the bit.

    values: parameter name -> full tensor; changed in place by ``apply`` and by nothing else.
    zeros: where the sums are kept, (shape, dtype, device) -> a tensor of zeros; in memory by default.
    measure: keep what ``shift`` needs: one number, and how many hold each parameter.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        axes: AxisMap,
        zeros: Zeros | None = None,
        *,
        measure: bool = False,
    ) -> None:
        self._values = values
        self._measure = measure
        self._squares = 0.0
        self._holders: dict[str, Tensor] = {}
        self._axes = axes
        self._zeros = zeros or _zeros
        self._sum: dict[str, Tensor] = {}
        self._weight: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, contribution: Contribution) -> None:
        """Add one contribution; raises UserError, and adds nothing of it, where it is not acceptable."""
        self.check(contribution)
        for name, part in contribution.values.items():
            dims, value, selection = self._axes.tensors[name], self._values[name], contribution.selection
            if name in contribution.only:
                dims, selection, part = _limited(dims, selection, part, *contribution.only[name])
            if name not in self._sum:
                wide = torch.promote_types(value.dtype, torch.float32)  # half precision cannot hold weights
                self._sum[name] = self._zeros(tuple(value.shape), wide, value.device)
                self._weight[name] = value.new_zeros([1] * len(dims), dtype=wide)
            self._weight[name] = self._widened(self._weight[name], dims, selection)
            moved = take(value, dims, selection).to(self._sum[name]) - part.to(self._sum[name])
            add_into(self._sum[name], dims, selection, moved * contribution.weight)
            add_into(self._weight[name], dims, selection, contribution.weight)
            if self._measure:
                norm = torch.linalg.vector_norm(moved, dtype=torch.float64)
                self._squares += contribution.weight * float(norm) ** 2
                held = self._holders.get(name)
                if held is None:
                    held = value.new_zeros([1] * len(dims), dtype=torch.int32)
                self._holders[name] = self._widened(held, dims, selection)
                add_into(self._holders[name], dims, selection, 1)

    def shift(self) -> Shift | None:
        """The shift of what was added since the last ``clear``; None where it is not measured.

        With weights w, changes d and their mean m, the sum of w (d - m)^2 is that of w d^2 less that of
        w m^2: no contribution has to be kept, and parameters with one holder add nothing.
        """
        if not self._measure:
            return None
        moved = common = 0.0
        for name, total in self._sum.items():
            for rows in row_blocks(tuple(total.shape)):
                weight = _rows(self._weight[name], rows).clamp_min(torch.finfo(total.dtype).tiny)
                squares = total[rows].square().div_(weight)
                moved += float(squares.sum(dtype=torch.float64))
                shared = _rows(self._holders[name], rows) > 1
                common += float(squares.mul_(shared).sum(dtype=torch.float64))
        return Shift(max(0.0, self._squares - moved), common)

    def check(self, contribution: Contribution) -> None:
        """Raise UserError unless names, shapes, values and weight are as they must be."""
        who = f"the contribution of participant {contribution.participant}"
        if not (contribution.weight > 0 and math.isfinite(contribution.weight)):
            raise UserError(f"{who}: expected a weight above 0, got {contribution.weight}")
        for name, part in contribution.values.items():
            if name not in self._values:
                raise UserError(f"{who}: expected parameters of the model, got an unknown one, {name!r}")
            want = tuple(count(positions(d, contribution.selection)) for d in self._axes.tensors[name])
            if tuple(part.shape) != want:
                raise UserError(f"{who}: expected {name} of shape {want}, got {tuple(part.shape)}")
            if not torch.isfinite(part.to(self._values[name].dtype)).all():
                raise Diverged(
                    f"{who}: expected finite values, got NaN or infinity in {name}; "
                    "training diverged, so lower the learning rate (train.lr) or clip gradients (train.clip)"
                )

    @torch.no_grad()
    def apply(self, step: float = 1.0) -> None:
        """Move every parameter by ``step`` times its mean change."""
        for name, rows, new in self.moved(step):
            self._values[name][rows] = new
        self.clear()

    @torch.no_grad()
    def moved(self, step: float) -> Iterator[tuple[str, Rows, Tensor]]:
        """(name, rows, new values of these rows) of every parameter that was contributed, in small blocks;
        nothing is changed."""
        for name, total in self._sum.items():
            value, weight = self._values[name], self._weight[name]
            for rows in row_blocks(tuple(value.shape)):
                mean = total[rows] / _rows(weight, rows).clamp_min(torch.finfo(total.dtype).tiny)
                yield name, rows, value[rows].clone().sub_(mean, alpha=step)  # x - 0 is x, even for -0

    def clear(self) -> None:
        """Forget all contributions."""
        self._sum.clear()
        self._weight.clear()
        self._holders.clear()
        self._squares = 0.0

    def _widened(self, weights: Tensor, dims: tuple[Dim, ...], selection: Selection) -> Tensor:
        """Sums of weights with room for the selection; a dimension that nobody has cut has extent 1."""
        extents = [
            extent if positions(dim, selection) == ((0, dim.size),) else dim.size
            for dim, extent in zip(dims, weights.shape, strict=True)
        ]
        if list(weights.shape) == extents:
            return weights
        return self._zeros(tuple(extents), weights.dtype, weights.device).copy_(weights)


def _limited(
    dims: tuple[Dim, ...], selection: Selection, part: Tensor, dimension: int, kept: Units
) -> tuple[tuple[Dim, ...], Selection, Tensor]:
    """The same with one whole dimension cut to what is kept, as if it followed an axis of its own."""
    own = Axis("", dims[dimension].size)
    dims = (*dims[:dimension], own, *dims[dimension + 1 :])
    return dims, {**selection, own.name: kept}, part.index_select(dimension, _index(kept, part.device))


def _rows(tensor: Tensor, rows: Rows) -> Tensor:
    """These rows of a tensor whose first dimension may have extent 1, which stands for all."""
    return tensor if not tensor.ndim or tensor.shape[0] == 1 else tensor[rows]


def row_blocks(shape: tuple[int, ...], elements: int = 1 << 22) -> Iterator[Rows]:
    """Rows of a tensor in blocks of about so many elements (16 MB in single precision), at least one row."""
    if not shape:
        yield ...
        return
    step = max(1, elements // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)
