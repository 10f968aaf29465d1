"""Cut a sub-model's values out of the full model, and merge what participants hand back."""

import cmath
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msfusion.core.axes import Axis, AxisMap, Dim, Selection, Units, positions
from msfusion.core.cut import Cut, Cuts, Rows, block_size, index, room
from msfusion.core.momentum import Momentum
from msfusion.core.twins import Twins
from msfusion.errors import Diverged, UserError

Zeros = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]


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
        shared a parameter or nothing moved. To nine digits, as the parts of a model, added up in another
        order, differ in the last ones, and what follows from the shift must not."""
        return float(f"{math.sqrt(self.spread / self.size):.9g}") if self.size > 0 else None


def extract(
    values: Mapping[str, Tensor],
    axes: AxisMap,
    selection: Selection,
    *,
    into: Mapping[str, Tensor] | None = None,
    cuts: Cuts | None = None,
) -> dict[str, Tensor]:
    """Copy the selected positions of each tensor.

    into: tensors of the shapes of the sub-model to copy them to, by default new ones.
    cuts: those of ``axes``, where they are at hand.
    """
    cut = (cuts or Cuts(axes)).of(selection)
    return {
        name: cut(name).take(tensor, None if into is None else into[name]) for name, tensor in values.items()
    }


def take(tensor: Tensor, dims: tuple[Dim, ...], selection: Selection) -> Tensor:
    """A contiguous copy of the selected positions of a full tensor."""
    return Cut.of(dims, selection).take(tensor)


def add_into(total: Tensor, dims: tuple[Dim, ...], selection: Selection, part: Tensor | float) -> None:
    """``total[selected positions] += part``, where a dimension of extent 1 in ``total`` is broadcast."""
    places = tuple(
        positions(dim, selection) if extent == dim.size else ((0, 1),)
        for dim, extent in zip(dims, total.shape, strict=True)
    )
    Cut.at(places, tuple(total.shape)).add(total, part)


class Merge:
    """Weighted mean per parameter over the contributions that hold it.

    Contributions are added one by one and not kept: the memory is that of the sum of changes, whatever the
    number of participants. The mean is taken over changes, so a parameter that nobody held, or that nobody
    changed, keeps its value to the bit.

    values: parameter name -> full tensor; changed in place by ``apply`` and by nothing else.
    zeros: where sums of changes and of weights are kept, (shape, dtype, device) -> a tensor of zeros; in
        memory by default.
    measure: keep what ``shift`` needs: one number, and how many hold each parameter.
    cuts: those of ``axes``, where they are at hand.
    twins: units that share their changes.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        axes: AxisMap,
        zeros: Zeros | None = None,
        *,
        measure: bool = False,
        cuts: Cuts | None = None,
        twins: Twins | None = None,
    ) -> None:
        self._values = values
        self._twins = twins
        self._measure = measure
        self._squares: Tensor | float = 0.0
        self._holders: dict[str, Tensor] = {}
        self._axes = axes
        self._cuts = cuts or Cuts(axes)
        self._zeros = zeros or _zeros
        self._sum: dict[str, Tensor] = {}
        self._used: dict[str, Tensor] = {}  # sums of an earlier round, zero again
        self._weight: dict[str, Tensor] = {}
        self._room: dict[torch.dtype, Tensor] = {}

    @torch.no_grad()
    def add(self, contribution: Contribution) -> None:
        """Add one contribution; raises UserError, and adds nothing of it, where it is not acceptable."""
        self.check(contribution)
        cuts = self._cuts.of(contribution.selection)
        for name, part in contribution.values.items():
            if name in contribution.only:
                dims, selection, kept = _limited(
                    self._axes.tensors[name], contribution.selection, part, *contribution.only[name]
                )
                self._add(name, Cut.of(dims, selection), kept, contribution.weight)
            else:
                self._add(name, cuts(name), part, contribution.weight)

    def _add(self, name: str, cut: Cut, part: Tensor, weight: float) -> None:
        value = self._values[name]
        total = self._total(name)
        if total.dtype not in self._room:
            self._room[total.dtype] = room(total)
        for moved in cut.add_change(total, value, part, weight, self._room[total.dtype]):
            if self._measure:
                self._squares = self._squares + weight * squares(moved)  # no float: a GPU would be waited for
        self._weight[name] = self._counted(self._weight.get(name), cut, weight, total)
        if self._measure:
            held = self._holders.get(name)
            self._holders[name] = self._counted(held, cut, 1, total, torch.int32)

    def _total(self, name: str) -> Tensor:
        """The sum of changes of a tensor, zero at first; half precision could not hold it."""
        if name not in self._sum:
            value, used = self._values[name], self._used.pop(name, None)
            wide = torch.promote_types(value.dtype, torch.float32)
            new = self._zeros(tuple(value.shape), wide, value.device) if used is None else used
            self._sum[name] = new
        return self._sum[name]

    def _counted(
        self, sums: Tensor | None, cut: Cut, amount: float, total: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """``sums`` with ``amount`` added where ``cut`` lies; a dimension that nobody has cut has extent 1."""
        own, at = cut.table
        if sums is None:
            sums = self._zeros(own, dtype or total.dtype.to_real(), total.device)
        extents = tuple(map(max, sums.shape, own))
        if tuple(sums.shape) != extents:
            sums = self._zeros(extents, sums.dtype, sums.device).copy_(sums)
        if extents != own:  # whole here, and cut by others
            places = zip(cut.places, extents, strict=True)
            at = Cut.at(tuple(runs if extent > 1 else ((0, 1),) for runs, extent in places), extents)
        at.add(sums, amount)
        return sums

    def shift(self) -> Shift | None:
        """The shift of what was added since the last ``apply``; None where it is not measured.

        With weights w, changes d and their mean m, the sum of w (d - m)^2 is that of w d^2 less that of
        w m^2: no contribution has to be kept, and parameters with one holder add nothing.
        """
        if not self._measure:
            return None
        moved: Tensor | float = 0.0
        common: Tensor | float = 0.0
        for name, total in self._sum.items():
            for rows in row_blocks(tuple(total.shape)):
                weight = _rows(self._weight[name], rows).clamp_min(torch.finfo(total.dtype).tiny)
                squared = _absolute(total[rows]).square().div_(weight)
                moved = moved + squared.sum(dtype=torch.float64)
                shared = _rows(self._holders[name], rows) > 1
                common = common + squared.mul_(shared).sum(dtype=torch.float64)
        return Shift(max(0.0, float(self._squares - moved)), float(common))

    def check(self, contribution: Contribution) -> None:
        """Raise UserError unless names, shapes, values and weight are as they must be."""
        who = f"the contribution of participant {contribution.participant}"
        if not (contribution.weight > 0 and math.isfinite(contribution.weight)):
            raise UserError(f"{who}: expected a weight above 0, got {contribution.weight}")
        cut = self._cuts.of(contribution.selection)
        for name, part in contribution.values.items():
            if name not in self._values:
                raise UserError(f"{who}: expected parameters of the model, got an unknown one, {name!r}")
            if tuple(part.shape) != (want := cut(name).shape):
                raise UserError(f"{who}: expected {name} of shape {want}, got {tuple(part.shape)}")
        parts = {name: part.to(self._values[name].dtype) for name, part in contribution.values.items()}
        if not _surely_finite(list(parts.values())):
            for name, part in parts.items():
                if not torch.isfinite(part).all():
                    raise Diverged(
                        f"{who}: expected finite values, got NaN or infinity in {name}; training diverged, "
                        "so lower the learning rate (train.lr) or clip gradients (train.clip)"
                    )

    @torch.no_grad()
    def apply(self, step: float = 1.0, momentum: Momentum | None = None) -> None:
        """Move every parameter by ``step`` times its mean change, or what ``momentum`` makes of it."""
        for name, total in self._sum.items():
            value = self._values[name]
            for rows, changes in self._mean_changes(name, total, momentum, block_size(value.device)):
                value[rows].sub_(changes, alpha=step)  # x - 0 is x, even for -0
                changes.zero_()  # for the next round, as long as it is in the cache
        self._forget()

    @torch.no_grad()
    def moved(self, step: float, momentum: Momentum | None = None) -> Iterator[tuple[str, Rows, Tensor]]:
        """(name, rows, new values of these rows) of every parameter that was contributed, in small blocks; no
        value is changed. To be called once; the sums are used up."""
        for name, total in self._sum.items():
            value = self._values[name]
            for rows, changes in self._mean_changes(name, total, momentum):
                yield name, rows, value[rows].clone().sub_(changes, alpha=step)

    def _mean_changes(
        self, name: str, total: Tensor, momentum: Momentum | None, elements: int = 1 << 22
    ) -> Iterator[tuple[Rows, Tensor]]:
        """(rows, what they are to be moved by) of a tensor, in blocks; made in place of the sums. Twins take
        up to three times the memory of the tensor, all else that of a block."""
        weight, twins = self._weight[name], self._twins
        own = twins.own(name, total, weight) if twins and twins.tie < 1 else None
        common = twins.mean(name, total, weight) if twins and twins.tie else None
        for rows in row_blocks(tuple(total.shape), elements):
            changes = total[rows]
            if own is None:
                changes.div_(_rows(weight, rows).clamp_min(torch.finfo(total.dtype).tiny))
            else:
                changes.copy_(_rows(own, rows))
            if twins and common is not None:
                changes.lerp_(_rows(common, rows), twins.tie)
            if momentum:
                momentum.carry_(name, rows, changes, total)
            yield rows, changes

    def _forget(self) -> None:
        self._used |= self._sum
        self._sum.clear()
        self._weight.clear()
        self._holders.clear()
        self._squares = 0.0


def _limited(
    dims: tuple[Dim, ...], selection: Selection, part: Tensor, dimension: int, kept: Units
) -> tuple[tuple[Dim, ...], Selection, Tensor]:
    """The same with one whole dimension cut to what is kept, as if it followed an axis of its own."""
    own = Axis("", dims[dimension].size)
    dims = (*dims[:dimension], own, *dims[dimension + 1 :])
    return dims, {**selection, own.name: kept}, part.index_select(dimension, index(kept, part.device))


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


def squares(tensor: Tensor) -> Tensor:
    """The sum of the squares of all entries, in float64."""
    norm: Tensor = torch.linalg.vector_norm(_absolute(tensor), dtype=torch.float64)
    return norm.square()


def _absolute(tensor: Tensor) -> Tensor:
    """Complex numbers as their absolute values."""
    return tensor.abs() if tensor.is_complex() else tensor


@torch.no_grad()
def _surely_finite(parts: list[Tensor]) -> bool:
    """Whether the sums of all parts are finite, as they are not where one value is NaN or infinite; sums of
    huge values may overflow, which then says nothing."""
    sums = [part.sum() for part in parts]
    return not sums or all(map(cmath.isfinite, torch.stack(sums).tolist()))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)
