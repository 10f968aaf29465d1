"""What every operation of a sub-model must look like, and whether a candidate module arrives at it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from msfusion.errors import UserError

from .graph import (
    Graph,
    capture_graph,
    device_of,
    fake_copy,
    fake_inputs,
    first_line,
    module_path,
    quiet,
    source_line,
    user_line,
)
from .operands import arguments
from .propagate import Propagation, shape_of
from .resize import Sizes, changes
from .rules.registry import base_name, labels_in

_MAY_VANISH = {
    "contiguous",
    "clone",
    "alias",
    "to",
    "detach",
    "_assert_tensor_metadata",
    "lift_fresh_copy",
    "type_as",
}
"""Operations that come and go with strides and dtypes."""

_COUNTS = ("groups", "num_groups")
"""Arguments that are sizes and do not show in the shape of the output."""

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Expected:
    """One operation of the sub-model. counts: numbers of groups."""

    node: torch.fx.Node
    shapes: Shapes
    counts: Mapping[str, Any]


@dataclass(frozen=True)
class Expectation:
    """All operations of the sub-model, in one mode."""

    training: bool
    operations: Sequence[Expected]


@dataclass(frozen=True)
class Mismatch:
    """Where a candidate differs first. path: the module; line: ``file:line``; text: what is different;
    number: whether that is a number alone which it computes with."""

    path: str
    line: str
    text: str
    number: bool = False


Numbers = Sequence[Sequence[Mapping[str, float]]]
"""What every operation computes with, in each mode."""


def expectation(graph: Graph, found: Propagation, sizes: Sizes) -> Expectation:
    """The operations of the full model with the shapes that the labels give them at other widths."""
    new = {change.node: change.arguments for change in changes(found, graph.nodes(), sizes)}
    operations = [
        Expected(
            node,
            [sizes.shape(labels) for labels in labels_in(found.values.get(node))],
            {**_counts(node), **{k: v for k, v in new.get(node, {}).items() if k in _COUNTS}},
        )
        for node in graph.nodes()
        if _matters(node) and labels_in(found.values.get(node))
    ]
    return Expectation(graph.training, operations)


def first_mismatch(
    expected: Sequence[Expectation],
    candidate: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    others: Numbers = (),
    lines: bool = False,
) -> Mismatch | None:
    """Export the candidate and compare it operation by operation; None where all are as expected. What it
    computes with has to be the full model's numbers: a temperature may have the value of a size.

    others: numbers that may stand there as well.
    lines: of operations that only the candidate has, too; see ``capture_graph``.
    """
    found = (
        _first_mismatch(one, candidate, args, kwargs, also, lines)
        for one, also in zip(expected, others or [()] * len(expected), strict=True)
    )
    return next((mismatch for mismatch in found if mismatch is not None), None)


def numbers_in(
    expected: Sequence[Expectation], candidate: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Numbers:
    """What a candidate computes with, whose attributes are those of the full model: it may take numbers from
    the shapes of its tensors. Empty where it cannot run."""
    try:
        graphs = [capture_graph(candidate, args, kwargs, training=one.training) for one in expected]
    except UserError:
        return ()
    return [[_numbers(node) for node in _compared(graph)] for graph in graphs]


def _first_mismatch(
    expected: Expectation,
    candidate: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    others: Sequence[Mapping[str, float]],
    lines: bool,
) -> Mismatch | None:
    try:
        graph = capture_graph(candidate, args, kwargs, training=expected.training, lines=lines)
    except UserError as error:
        failed = _failure(candidate, args, kwargs, expected.training)
        return failed or Mismatch("", "the forward", first_line(error))
    for want, node, other in itertools.zip_longest(expected.operations, _compared(graph), others):
        if want is None or node is None:
            at = want.node if want is not None else node
            return Mismatch(module_path(at), source_line(at), "another number of operations")
        where = module_path(want.node), source_line(want.node)
        if (text := _difference(want, node)) is not None:
            return Mismatch(*where, text)
        if _numbers(node) not in (_numbers(want.node), other):
            expects = f"{want.node.target} expected {_numbers(want.node)}, got {_numbers(node)}"
            return Mismatch(*where, expects, number=True)
    return None


def _compared(graph: Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes() if _matters(node) and _shapes(node)]


def _matters(node: torch.fx.Node) -> bool:
    if node.op != "call_function":
        return False
    return not (isinstance(node.target, torch._ops.OpOverload) and base_name(node.target) in _MAY_VANISH)


def _shapes(node: torch.fx.Node) -> Shapes:
    tensors = pytree.tree_leaves(node.meta.get("val"))
    return [shape_of(t) for t in tensors if isinstance(t, torch.Tensor)]


def _counts(node: torch.fx.Node) -> dict[str, Any]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    names, given = [argument.name for argument in node.target._schema.arguments], arguments(node)
    return {name: given.get(name, 1) for name in _COUNTS if name in names}


def _numbers(node: torch.fx.Node) -> dict[str, float]:
    """What stands where a scalar or a tensor may stand, and every float; sizes and dimensions are neither."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    schema = node.target._schema.arguments
    kinds = {a.name: str(a.type).removeprefix("Optional[").removesuffix("]") for a in schema}
    return {
        name: value
        for name, value in arguments(node).items()
        if isinstance(value, int | float) and kinds[name] in ("number", "Tensor", "float")
    }


def _difference(want: Expected, node: torch.fx.Node) -> str | None:
    if not isinstance(want.node.target, torch._ops.OpOverload):
        return None  # a nested region or a getitem: what is in it is compared by itself
    if want.node.target is not node.target:
        return f"expected {want.node.target}, got {node.target}"
    if want.shapes != _shapes(node):
        return f"{want.node.target} expected {want.shapes}, got {_shapes(node)}"
    if want.counts != _counts(node):
        return f"{want.node.target} expected {dict(want.counts)}, got {_counts(node)}"
    return None


def _failure(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool
) -> Mismatch | None:
    """Run the forward on fake tensors and find the module that raises, and the line in it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = fake_copy(model, mode, device_of(model, (args, kwargs))).train(training)
    entered: list[str] = []
    for name, module in shadow.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
        module.register_forward_hook(lambda *_: _leave(entered))
    fake_args, fake_kwargs = fake_inputs((args, dict(kwargs)), mode)
    try:
        with torch.no_grad(), mode, quiet():
            shadow(*fake_args, **fake_kwargs)
    except Exception as error:
        return Mismatch(entered[-1] if entered else "", user_line(error), first_line(error))
    return None


def _leave(entered: list[str]) -> None:
    entered.pop()
