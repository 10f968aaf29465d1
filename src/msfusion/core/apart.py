"""Windows that share no unit: the full model as narrow ones side by side.

Every axis that is cut has the same number P of windows, one behind the other, and the window ``s`` of each is
sub-model ``s``. Weights between units of different windows would never be trained, so they are 0, and stay
so. What sums over the units of all windows and lies in none, as the head, is scaled where it is cut out, and
is then the mean over the sub-models. Where nothing else lies between them, and norms are of each unit, the
full model is the mean of what its sub-models compute. (Ours.)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import combinations

import torch
from torch import Tensor

from msfusion.core.axes import Axis, AxisMap, Concat, Dim, Fixed, Product, Widths
from msfusion.core.scale import Factor, fan_in
from msfusion.errors import UserError


def sub_models(widths: Widths, axes: AxisMap) -> int:
    """How many sub-models of these widths there are side by side; UserError where axes would have different
    numbers of windows, or windows of different sizes."""
    numbers = {axis: axes.axes[axis].size / width for axis, width in widths.items()}
    first = next(iter(numbers.values()), 1.0)
    for axis, number in numbers.items():
        if number != first or not number.is_integer():
            raise UserError(
                f"expected windows that divide all axes by one number, as they share no unit, got "
                f"{widths[axis]} of the {axes.axes[axis].size} units of {axis!r}; give a share, or a width "
                "such as 0.5 or 0.25"
            )
    return int(first)


def divided(axes: AxisMap) -> Iterator[dict[str, int]]:
    """Widths that divide all axes that may be cut by one number, the widest first."""
    sizes = {axis: axes.axes[axis].size for axis in axes.cuttable}
    most = math.gcd(*sizes.values())
    for number in (k for k in range(1, most + 1) if most % k == 0):
        yield {axis: size // number for axis, size in sizes.items()}


def together(dims: Sequence[Dim], widths: Widths) -> Tensor | None:
    """Which entries of a tensor lie in a sub-model: bool, broadcast to its shape; None where all do."""
    placed = [(d, window) for d, dim in enumerate(dims) for window in _windows(dim, widths)]
    mask: Tensor | None = None
    for (first, one), (second, other) in combinations(placed, 2):
        a, b = _along(one, first, len(dims)), _along(other, second, len(dims))
        meet = (a == b) | (a < 0) | (b < 0)
        mask = meet if mask is None else mask & meet
    return None if mask is None or mask.all() else mask


def factors(axes: AxisMap, widths: Widths) -> dict[str, Factor]:
    """Parameter -> factor of the scale rule, for those whose factor is not 1 (core/scale.py): entries that
    read units of windows and make what lies in none are scaled by the number of sub-models."""
    found = {name: _factor(axes, name, widths, narrow=True) for name in axes.summed}
    return {
        name: float(factor.flatten()[0]) if _all_alike(factor) else factor
        for name, factor in found.items()
        if (factor != 1).any()
    }


@torch.no_grad()
def start_(values: Mapping[str, Tensor], axes: AxisMap, widths: Widths) -> None:
    """Make what lies in no sub-model 0, in place, and the rest so large that a sub-model begins with values
    as large as a model has that was made so narrow."""
    whole, own = fan_in(axes, {}), fan_in(axes, widths)
    for name, value in values.items():
        if name in axes.summed and value.is_floating_point():
            factor = _factor(axes, name, widths, narrow=False).to(value)
            value.mul_(math.sqrt(whole[name] / own[name])).div_(factor)
        if (mask := together(axes.tensors[name], widths)) is not None:
            value.mul_(mask.to(value.device))


def check(axes: AxisMap, widths: Widths, owed: Sequence[str]) -> None:
    """Raise UserError for products of which it is not known by how much they are to be scaled.

    owed: where products are that have the factor of the scale rule themselves.
    """
    if owed and any(together(dims, widths) is not None for dims in axes.tensors.values()):
        raise UserError(
            "expected products whose weights can be scaled, as windows share no unit, got one at "
            f"{owed[0]} whose weight is shared or computed; take msfusion"
        )


def _factor(axes: AxisMap, name: str, widths: Widths, *, narrow: bool) -> Tensor:
    """Of every entry of a tensor that has axes summed over, float64, broadcast to its shape.

    narrow: the shape is that in a sub-model.
    """
    dims, summed = axes.tensors[name], axes.summed[name]
    reads, makes = torch.zeros([], dtype=torch.bool), torch.zeros([], dtype=torch.bool)
    for d, dim in enumerate(dims):
        read = d in summed
        cut = _along(_cut(dim, widths, narrow), d, len(dims))
        reads, makes = (reads | cut, makes) if read else (reads, makes | cut)
    read_axes = [axis for dim in summed.values() for axis in _axes(dim)]
    number = max((axis.size // widths.get(axis.name, axis.size) for axis in read_axes), default=1)
    factor = torch.where(reads & ~makes, float(number), 1.0).double()
    if name not in axes.normalised:
        return factor
    return torch.ones_like(factor) if _all_alike(factor) else factor / factor.mean()


def _all_alike(factor: Tensor) -> bool:
    return bool((factor == factor.flatten()[0]).all())


def _axes(dim: Dim) -> Iterator[Axis]:
    match dim:
        case Axis():
            yield dim
        case Product(factors=inner) | Concat(parts=inner):
            for one in inner:
                yield from _axes(one)


def _cut(dim: Dim, widths: Widths, narrow: bool) -> Tensor:
    """Whether an index along a dimension is of an axis that is cut; for those in a sub-model, or for all."""
    match dim:
        case Axis(name=name, size=size):
            width = widths.get(name, size)
            return torch.full((width if narrow else size,), width < size)
        case Product(factors=factors):
            return reduce(lambda a, b: (a[:, None] | b).flatten(), [_cut(f, widths, narrow) for f in factors])
        case Concat(parts=parts):
            return torch.cat([_cut(part, widths, narrow) for part in parts])
        case Fixed(size=size):
            return torch.zeros(size, dtype=torch.bool)


def _windows(dim: Dim, widths: Widths) -> Iterator[Tensor]:
    """For every axis that a dimension follows and that is cut, the window of every index along it, -1 where
    that is not of the axis."""
    match dim:
        case Axis(name=name, size=size):
            if (width := widths.get(name, size)) < size:
                yield torch.arange(size) // width
        case Product(factors=factors):
            for i, factor in enumerate(factors):
                before = math.prod(one.size for one in factors[:i])
                behind = math.prod(one.size for one in factors[i + 1 :])
                for window in _windows(factor, widths):
                    yield window.repeat_interleave(behind).repeat(before)
        case Concat(parts=parts):
            for i, part in enumerate(parts):
                before = sum(one.size for one in parts[:i])
                for window in _windows(part, widths):
                    whole = torch.full((dim.size,), -1)
                    whole[before : before + part.size] = window
                    yield whole
        case Fixed():
            return


def _along(window: Tensor, dimension: int, dimensions: int) -> Tensor:
    return window.view([-1 if d == dimension else 1 for d in range(dimensions)])
