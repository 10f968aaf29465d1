"""How a weight that is computed from parameters changes where units are copied.

The scale rule is that a window over units which are copies of one another computes what the full model does.
A parameter is the same there, but what is computed from it need not be: the norm of a row with every unit
twice is the root of two times as large, and a row divided by its norm that much smaller. The exponent is
found by walking back from the weight: a *degree* per leaf, 0 for parameters, that of a value with k copies of
each unit being k^degree times what it was.
"""

import math
import operator
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeAlias

import torch

from .labels import Label, factors, is_pinned, leaves, resolve
from .operands import arguments
from .propagate import Propagation
from .rules import Labels, is_view
from .rules.registry import base_name, dimensions

Degrees: TypeAlias = Mapping[Label, Fraction]
"""Leaf -> exponent, where that is not 0."""

_POWERS = {
    **dict.fromkeys(("neg", "abs", "relu", "dropout"), Fraction(1)),
    "square": Fraction(2),
    "sqrt": Fraction(1, 2),
    "rsqrt": Fraction(-1, 2),
    "reciprocal": Fraction(-1),
}
"""Functions of one value, element by element, and the power of it that they follow."""

_ADDED = ("add", "sub", "rsub", "maximum", "minimum", "cat", "stack", "where")
_MEANS = {**dict.fromkeys(("mean", "std", "amax", "amin"), Fraction(1)), "var": Fraction(2)}
"""Reductions that are the same over copies, and the power of the value that they follow."""

_PRODUCTS = ("matmul", "mm", "mv", "bmm", "dot", "vdot", "inner")
"""What these sum over is made up for by a parameter, or by the product itself."""
_NORMALISED = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


class Unknown(Exception):
    """There is no such degree, or none that is known."""


def degrees_of(node: torch.fx.Node, found: Propagation) -> Degrees | None:
    """Those of what the node makes of parameters; None where they are not known."""
    try:
        return _Walk(found).of(node)
    except Unknown:
        return None


class _Walk:
    def __init__(self, found: Propagation) -> None:
        self._found = found
        self._known: dict[torch.fx.Node, Degrees] = {}

    def of(self, value: Any) -> Degrees:
        if not isinstance(value, torch.fx.Node):
            return {}
        if value not in self._known:
            self._known[value] = self._computed(value)
        return self._known[value]

    def _computed(self, node: torch.fx.Node) -> Degrees:
        labels = self._found.values.get(node)
        if isinstance(labels, Labels) and (labels.activation or labels.origin is not None):
            if labels.activation:
                raise Unknown
            return {}
        if node.op == "get_attr":
            return {}
        if node.op == "placeholder" and isinstance(labels, Labels) and all(map(is_pinned, labels)):
            return {}
        if node.target is operator.getitem:
            return self._part(*node.args)
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Unknown
        return self._made(node, base_name(node.target), arguments(node))

    def _made(self, node: torch.fx.Node, name: str, given: Mapping[str, Any]) -> Degrees:
        read = [self.of(argument) for argument in node.all_input_nodes]
        first = node.args[0] if node.args else None
        if is_view(node.target) and read:
            return self.of(first)
        if name in ("mul", "div"):
            return _joined(self.of(first), self.of(given["other"]), 1 if name == "mul" else -1)
        if name in _ADDED and _negligible(given.get("other")):
            return _alike(read)
        if name == "clamp_min" and _negligible(given.get("min")):
            return self.of(first)
        if name in _POWERS:
            return _times(self.of(first), _POWERS[name])
        if name == "pow" and isinstance(given["exponent"], int | float):
            return _times(self.of(first), Fraction(given["exponent"]))
        if name in _MEANS:
            return _times(self.of(first), _MEANS[name])
        if name == "sum":
            return _joined(self.of(first), self._over(first, given.get("dim"), Fraction(1)))
        if name == "linalg_vector_norm" and isinstance(order := given.get("ord", 2), int | float) and order:
            power = Fraction(0) if math.isinf(order) else 1 / Fraction(order)
            return _joined(self.of(first), self._over(first, given.get("dim"), power))
        if name == "_weight_norm":  # g v / |v|; -1 is the norm of all
            others = [d for d in range(given["v"].meta["val"].ndim) if d != given.get("dim", 0)]
            return _joined(self.of(given["g"]), self._over(given["v"], others, Fraction(1, 2)), -1)
        if name in _NORMALISED:
            return self.of(given.get("weight"))
        if name in _PRODUCTS and not any(map(self._is_buffer, node.all_input_nodes)):
            return _joined(read[0], read[-1])
        element_by_element = name in _ADDED or torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
        if element_by_element and not any(read):
            return {}
        raise Unknown

    def _part(self, whole: Any, index: Any) -> Degrees:
        """Of the outputs of an operation with several."""
        name = base_name(whole.target) if isinstance(whole.target, torch._ops.OpOverload) else ""
        if name in ("var_mean", "std_mean"):
            own = self.of(whole.args[0])
            return _times(own, Fraction(2)) if index == 0 and name == "var_mean" else own
        raise Unknown

    def _over(self, value: Any, dims: Any, power: Fraction) -> Degrees:
        """The power for each leaf of these dimensions."""
        labels = self._found.values.get(value)
        if not isinstance(labels, Labels):
            raise Unknown
        over: Counter[Label] = Counter()
        for label in (labels[d] for d in dimensions(dims, len(labels))):
            if _lies_side_by_side(label):
                raise Unknown  # parts may be cut to widths that differ
            over.update(leaves(label))
        return {leaf: times * power for leaf, times in over.items()}

    def _is_buffer(self, node: torch.fx.Node) -> bool:
        """Whether it may follow the weight from step to step, as the vectors of spectral norm do."""
        labels = self._found.values.get(node)
        return (
            isinstance(labels, Labels) and labels.origin is not None and labels.origin in self._found.buffers
        )


def _negligible(added: Any) -> bool:
    """Whether a number is there for a division's sake alone; all that is no number is."""
    return not isinstance(added, int | float) or abs(added) < 1e-2


def _lies_side_by_side(label: Label) -> bool:
    label = resolve(label)
    if label.form == "leaf":
        return False
    return label.form == "concat" or any(map(_lies_side_by_side, factors(label)))


def _joined(first: Degrees, second: Degrees, sign: int = 1) -> Degrees:
    none = Fraction(0)
    sums = {leaf: first.get(leaf, none) + sign * second.get(leaf, none) for leaf in {*first, *second}}
    return {leaf: power for leaf, power in sums.items() if power}


def _times(degrees: Degrees, power: Fraction) -> Degrees:
    return {leaf: own * power for leaf, own in degrees.items() if own * power}


def _alike(each: list[Degrees]) -> Degrees:
    if any(one != each[0] for one in each):
        raise Unknown
    return each[0] if each else {}
