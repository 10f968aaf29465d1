"""What depends on how many inputs an operation sums over: the scale rule, and learning rates.

A sub-model sums over fewer inputs than the full model does. As with inverted dropout, a tensor whose
operation sums over cut axes is multiplied by the number of inputs in the full model over that in the
sub-model when a sub-model is cut out, and divided by it when the contribution is handed over. The sub-model
is then an ordinary module with an ordinary forward pass, and the full model, evaluated whole, is the average
of what its sub-models compute (where inputs lie side by side that are cut to different widths, in total
only). Directly before a normalisation the rule does nothing: the norm would take the factor away, and what
stayed would be a layer that learns factor^2 times more slowly.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from msfusion.core.axes import AxisMap, Widths, narrowed


def factors(axes: AxisMap, widths: Widths, power: float = 1.0) -> dict[str, float]:
    """Parameter name -> factor, for those whose factor is not 1.

    power: 1 keeps the expected sum (ours, as inverted dropout), 0.5 the variance of a sum of independent
    terms (for a small model that is trained on its own), 0 switches the rule off.
    """
    ratios = {
        name: math.prod(dim.size / narrowed(dim, widths) for dim in dims)
        for name, dims in axes.summed.items()
        if name not in axes.normalised
    }
    return {name: ratio**power for name, ratio in ratios.items() if ratio != 1 and power != 0}


def input_factors(axes: AxisMap, widths: Widths) -> dict[str, float]:
    """Linear layer -> factor of its inputs, of those whose weight cannot have it, where that is not 1."""
    ratios = {
        layer: math.prod(dim.size / narrowed(dim, widths) for dim in dims)
        for layer, dims in axes.inputs.items()
    }
    return {layer: ratio for layer, ratio in ratios.items() if ratio != 1}


def fan_in(axes: AxisMap, widths: Widths) -> dict[str, int]:
    """Parameter name -> how many inputs its operation sums over in a sub-model, the taps of a kernel not
    counted; of those alone that sum over axes."""
    return {name: math.prod(narrowed(dim, widths) for dim in dims) for name, dims in axes.summed.items()}


def rates(axes: AxisMap, widths: Widths, at: int) -> dict[str, float]:
    """Parameter name -> what its learning rate is multiplied by under an optimizer whose steps do not depend
    on the size of gradients, such as Adam's: at / fan-in where that is more than ``at``; of those alone whose
    rate is not 1 (muP, arXiv 2203.03466, table 3; per layer, arXiv 2407.05872).

    Where the scale rule applies with its power of 1, an entry of the full model then moves by as much per
    step whatever the width of the sub-model that trains it.
    """
    return {name: at / inputs for name, inputs in fan_in(axes, widths).items() if inputs > at}


def scale_(values: Mapping[str, Tensor], factors: Mapping[str, float], *, undo: bool = False) -> None:
    """Multiply (or divide) tensors in place by their factors."""
    for name, factor in factors.items():
        if name in values:
            values[name].div_(factor) if undo else values[name].mul_(factor)
