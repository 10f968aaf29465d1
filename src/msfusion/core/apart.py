"""Windows that share no unit: the full model as narrow ones side by side.

Every axis that is cut has P = size / width windows, one behind the other, and window ``s mod P`` of each is
sub-model ``s``. Weights between units of windows that make no sub-model together would never be trained, so
they are 0, and stay so. The full model is then the mean of what its sub-models compute, exactly where nothing
but the scale rule and norms per unit lies between them: where the residual stream is whole they meet in it,
where it is cut too they are an ensemble. (Ours.)
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from msfusion.core.axes import Axis, AxisMap, Concat, Dim, Fixed, Product, Widths
from msfusion.core.scale import Factor
from msfusion.errors import UserError


def parts(axis: Axis, widths: Widths) -> int:
    """How many windows an axis has; 1 where it is whole."""
    return axis.size // widths.get(axis.name, axis.size)


def together(dims: Sequence[Dim], widths: Widths) -> Tensor | None:
    """Which entries of a tensor lie in a sub-model: bool, broadcast to its shape; None where all do."""
    placed = [(d, number, window) for d, dim in enumerate(dims) for number, window in _windows(dim, widths)]
    mask: Tensor | None = None
    for (first, some, one), (second, others, other) in combinations(placed, 2):
        step = math.gcd(some, others)
        if step > 1:
            a, b = _along(one, first, len(dims)), _along(other, second, len(dims))
            meet = ((a - b) % step == 0) | (a < 0) | (b < 0)
            mask = meet if mask is None else mask & meet
    return None if mask is None or mask.all() else mask


def sub_models(widths: Widths, sizes: Widths) -> int:
    """How many sub-models there are side by side."""
    return math.lcm(*(sizes[axis] // width for axis, width in widths.items()))


def repeated(axes: AxisMap, widths: Widths) -> dict[str, int]:
    """Parameter -> by how much less of it a sum reads than where all its entries lie in sub-models, for those
    where it is less: the factor of the scale rule is so much smaller."""
    found = {}
    for name, summed in axes.summed.items():
        kept = [
            rest for place, dim in enumerate(axes.tensors[name]) for rest in _without(dim, summed.get(place))
        ]
        inputs, outputs = _number(summed.values(), widths), _number(kept, widths)
        if (common := math.gcd(inputs, outputs)) > 1 and name not in axes.normalised:
            found[name] = common
    return found


def lessened(factors: Mapping[str, Factor], axes: AxisMap, widths: Widths) -> dict[str, Factor]:
    """Factors of the scale rule, ``scale.factors``, where windows share no unit."""
    less = repeated(axes, widths)
    found = {name: factor / less.get(name, 1) for name, factor in factors.items()}
    return {name: factor for name, factor in found.items() if isinstance(factor, Tensor) or factor != 1}


@torch.no_grad()
def start_(values: Mapping[str, Tensor], axes: AxisMap, widths: Widths) -> None:
    """Make what lies in no sub-model 0, in place, and the rest larger by as much as the factor of the scale
    rule is smaller."""
    larger = repeated(axes, widths)
    for name, value in values.items():
        value.mul_(larger.get(name, 1))
        if (mask := together(axes.tensors[name], widths)) is not None:
            value.mul_(mask.to(value.device))


def check(axes: AxisMap, widths: Widths, owed: Sequence[str]) -> None:
    """Raise UserError where it is not known by how much a sum reads less.

    owed: where products are that have the factor of the scale rule themselves.
    """
    if owed and any(together(dims, widths) is not None for dims in axes.tensors.values()):
        raise UserError(
            "expected products whose weights can be scaled, as windows share no unit and residual streams "
            f"are cut, got one at {owed[0]} whose weight is shared or computed; give a larger share, which "
            "leaves the streams whole, or take msfusion"
        )
    for name in repeated(axes, widths):
        for dim in axes.summed[name].values():
            if isinstance(dim, Concat) and len({_number([part], widths) for part in dim.parts}) > 1:
                raise UserError(
                    f"expected inputs of {name} that are all cut alike, as windows share no unit, got {dim}; "
                    "give a width such as 0.5, or take msfusion"
                )


def _without(dim: Dim, summed: Dim | None) -> Iterator[Dim]:
    """What is left of a dimension whose operation sums over some of it, all of it or a factor."""
    if dim != summed:
        yield from (one for one in dim.factors if one != summed) if isinstance(dim, Product) else [dim]


def _number(dims: Iterable[Dim], widths: Widths) -> int:
    """How many sub-models dims tell apart."""
    return math.lcm(*(parts(axis, widths) for dim in dims for axis in _axes(dim)))


def _axes(dim: Dim) -> Iterator[Axis]:
    match dim:
        case Axis():
            yield dim
        case Product(factors=inner) | Concat(parts=inner):
            for one in inner:
                yield from _axes(one)


def _windows(dim: Dim, widths: Widths) -> Iterator[tuple[int, Tensor]]:
    """For every axis that a dimension follows the number of its windows, and the window of every index along
    it, -1 where that is not of the axis."""
    match dim:
        case Axis(size=size):
            if (number := parts(dim, widths)) > 1:
                yield number, torch.arange(size) // (size // number)
        case Product(factors=factors):
            for i, factor in enumerate(factors):
                before = math.prod(one.size for one in factors[:i])
                behind = math.prod(one.size for one in factors[i + 1 :])
                for number, window in _windows(factor, widths):
                    yield number, window.repeat_interleave(behind).repeat(before)
        case Concat(parts=pieces):
            for i, piece in enumerate(pieces):
                before = sum(one.size for one in pieces[:i])
                for number, window in _windows(piece, widths):
                    whole = torch.full((dim.size,), -1)
                    whole[before : before + piece.size] = window
                    yield number, whole
        case Fixed():
            return


def _along(window: Tensor, dimension: int, dimensions: int) -> Tensor:
    return window.view([-1 if d == dimension else 1 for d in range(dimensions)])
