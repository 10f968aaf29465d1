"""What depends on how many inputs an operation sums over: the scale rule, and learning rates.

A sub-model sums over fewer inputs than the full model does. As with inverted dropout, a tensor whose
operation sums over cut axes is multiplied by the number of inputs in the full model over that in the sub-
model when a sub-model is cut out, and divided by it when the contribution is handed over. The sub-model is
then an ordinary module with an ordinary forward pass, and the full model, evaluated whole, is the average of
what its sub-models compute. Inputs that lie side by side and are cut to different widths have factors of
their own. A parameter that is read in another way as well cannot have the factor, nor can one from which a
weight is computed, or a buffer of integers; the product itself is then multiplied (capture/derive.py says
which, capture/narrow.py how, and capture/degrees.py by how much where a weight is computed). Directly
before a normalisation only the relation of these counts: the norm would take a factor of all away, and what
stayed would be a layer that learns factor^2 times more slowly. A small model that is trained on its own has
the root of the factor there too: its weights then are as large as those of a model that was made so narrow.
"""

import math
from collections.abc import Mapping, Sequence, Set
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor

from msfusion.core.axes import AxisMap, Concat, Dim, Product, Widths, narrowed

Factor: TypeAlias = float | Tensor
"""Of a whole tensor, or a float64 tensor that broadcasts to it."""


def factors(axes: AxisMap, widths: Widths, power: float = 1.0) -> dict[str, Factor]:
    """Parameter name -> factor, for those whose factor is not 1.

    power: 1 keeps the expected sum (ours, as inverted dropout), 0.5 the variance of a sum of independent
    terms (for a small model that is trained on its own), 0 switches the rule off.
    """
    if power == 0:
        return {}
    ratios: dict[str, Factor] = {}
    for name, dims in axes.summed.items():
        ratio = math.prod(_ratio(axes.tensors[name], place, dim, widths) for place, dim in dims.items())
        if name in axes.normalised and power == 1:
            ratio = ratio / math.prod(dim.size / narrowed(dim, widths) for dim in dims.values())
        ratios[name] = ratio**power
    return {name: ratio for name, ratio in ratios.items() if isinstance(ratio, Tensor) or ratio != 1}


def _ratio(tensor: Sequence[Dim], place: int, dim: Dim, widths: Widths) -> Factor:
    """How many times as many inputs the full model has along a dim that a dimension of the tensor has; where
    parts of that differ, one number for each of its indices."""
    each = _ratios(dim, widths) if dim == tensor[place] else dim.size / narrowed(dim, widths)
    return each.view(-1, *[1] * (len(tensor) - 1 - place)) if isinstance(each, Tensor) else each


def _ratios(dim: Dim, widths: Widths) -> Factor:
    """How many times as many indices a dim has in the full model; where its parts differ, a vector with the
    number for each index in the sub-model."""
    if isinstance(dim, Product | Concat):
        parts = dim.factors if isinstance(dim, Product) else dim.parts
        each = [_ratios(part, widths) for part in parts]
        differ = isinstance(dim, Concat) and len({one for one in each if not isinstance(one, Tensor)}) > 1
        if differ or any(isinstance(one, Tensor) for one in each):
            vectors = [
                torch.as_tensor(one, dtype=torch.float64).expand(narrowed(part, widths))
                for one, part in zip(each, parts, strict=True)
            ]
            return reduce(torch.kron, vectors) if isinstance(dim, Product) else torch.cat(vectors)
    return dim.size / narrowed(dim, widths)


def fan_in(axes: AxisMap, widths: Widths) -> dict[str, int]:
    """Parameter name -> how many inputs its operation sums over in a sub-model, the taps of a kernel not
    counted; of those alone that sum over axes."""
    return {n: math.prod(narrowed(dim, widths) for dim in own.values()) for n, own in axes.summed.items()}


def rates(axes: AxisMap, widths: Widths, at: int) -> dict[str, float]:
    """Parameter name -> what its learning rate is multiplied by under an optimizer whose steps do not depend
    on the size of gradients, such as Adam's: at / fan-in where that is more than ``at``; of those alone whose
    rate is not 1 (muP, arXiv 2203.03466, table 3; per layer, arXiv 2407.05872).

    Where the scale rule applies with its power of 1, an entry of the full model then moves by as much per
    step whatever the width of the sub-model that trains it.
    """
    return {name: at / inputs for name, inputs in fan_in(axes, widths).items() if inputs > at}


def scale_(values: Mapping[str, Tensor], factors: Mapping[str, Factor], *, undo: bool = False) -> None:
    """Multiply (or divide) tensors in place by their factors."""
    own = {name: factor for name, factor in factors.items() if name in values}
    numbers = {name: factor for name, factor in own.items() if not isinstance(factor, Tensor)}
    if numbers:
        each = torch._foreach_div_ if undo else torch._foreach_mul_
        each([values[name] for name in numbers], list(numbers.values()))
    for name in own.keys() - numbers.keys():
        factor = on(own[name], values[name])
        values[name].div_(factor) if undo else values[name].mul_(factor)


def rounded(factors: Mapping[str, Factor]) -> frozenset[str]:
    """Those by whose factor values cannot be multiplied and divided without rounding: all but powers of 2."""
    each = {name: torch.as_tensor(factor).flatten().tolist() for name, factor in factors.items()}
    return frozenset(name for name, own in each.items() if any(math.frexp(one)[0] != 0.5 for one in own))


@torch.no_grad()
def undo_(
    values: Mapping[str, Tensor],
    factors: Mapping[str, Factor],
    given: Mapping[str, Tensor],
    rounded: Set[str],
) -> None:
    """Undo ``scale_`` in place, whatever changed the values since. Those that nothing changed become what
    they were, to the bit: rounding alone would look like a change.

    given: what ``scale_`` was given, for the names in ``rounded``.
    """
    for name in rounded & values.keys():
        before, value = given[name].to(values[name].device), values[name]
        scaled = before.clone()
        scale_({name: scaled}, factors)
        same = scaled == value
        scale_({name: value}, factors, undo=True)
        torch.where(same, before, value, out=value)
    scale_({name: value for name, value in values.items() if name not in rounded}, factors, undo=True)


def on(factor: Factor, tensor: Tensor) -> Factor:
    """The factor where the tensor is, and of its type."""
    return factor.to(tensor) if isinstance(factor, Tensor) else factor
