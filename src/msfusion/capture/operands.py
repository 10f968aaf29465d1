"""Arguments of operations in a captured graph; sums of products, one operand of which can have a factor."""

import operator
from typing import Any

import torch

from .rules.registry import CONVOLUTIONS, base_name

_FIRST = {"linear", "bilinear", "matmul", "mm", "bmm", "mv", "dot", "inner", "einsum", *CONVOLUTIONS}
_SECOND = {"addmm", "baddbmm", "addbmm", "addmv"}  # what is added comes first


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments that an operation is given, by the names of its schema."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def product_operand(node: torch.fx.Node) -> torch.fx.Node | None:
    """A tensor in which the operation is linear, beside what it adds; None of an operation that has none."""
    place = _place(node)
    if place is None:
        return None
    operand = node.args[place]
    if isinstance(operand, list | tuple):  # of an einsum
        operand = operand[0]
    return operand if isinstance(operand, torch.fx.Node) else None


def multiply_(node: torch.fx.Node, factor: float) -> None:
    """Multiply that operand, in this operation alone."""
    place, operand = _place(node), product_operand(node)
    assert place is not None
    with node.graph.inserting_before(node):
        times = node.graph.call_function(operator.mul, (operand, factor))
    old = node.args[place]
    node.update_arg(place, [times, *old[1:]] if isinstance(old, list | tuple) else times)


def _place(node: torch.fx.Node) -> int | None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = base_name(node.target)
    place = 1 if name in _SECOND or name == "einsum" else 0 if name in _FIRST else None
    return place if place is not None and place < len(node.args) else None
