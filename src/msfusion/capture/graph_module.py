"""The captured graph in place of a module's forward, where the module's own code cannot run narrow.

Code with sizes written out (``view(-1, 2048)``) or derived from another width (``embed // n_head``) does not
follow its tensors. The graph does, once its size constants are replaced by those that the labels give. It is
captured with symbolic batch and sequence lengths, once in train and once in eval mode, and what every
operation makes of the narrow tensors is compared with the labels before it is used. Sizes that it holds as
numbers (heights and widths of images) are captured anew where inputs of another size come.
"""

import copy
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from msfusion.core.axes import AxisMap, Widths
from msfusion.errors import UserError

from .derive import Derived, derive
from .graph import Graph, capture_graph, device_of, fake_copy, fake_inputs, quiet
from .operands import multiply_
from .propagate import shape_of
from .resize import Change, Sizes, changes
from .rules.registry import base_name, labels_in
from .runner import Runner, graph_modules

_INPUT = InputKind.USER_INPUT


@dataclass(frozen=True)
class SymbolicGraph:
    """A graph captured with symbolic sizes, and the labels on it."""

    graph: Graph
    derived: Derived

    def resized(self, widths: Widths, *, scaled: bool) -> torch.fx.GraphModule:
        """A copy of the graph with its size constants at other widths.

        scaled: products whose parameters cannot have the factor of the scale rule have it themselves.
        """
        sizes = Sizes(self.derived.names, widths)
        factors: dict[torch.fx.Node, float] = {}
        for owed in self.derived.owed if scaled else ():
            factors[owed.node] = factors.get(owed.node, 1.0) * owed.factor(widths)
        wanted = {c.node: c for c in changes(self.derived.found, self.graph.nodes(), sizes)}
        new: torch.fx.GraphModule = copy.deepcopy(self.graph.program.graph_module)
        for old, module in zip(self.graph.modules(), graph_modules(new), strict=True):
            for node, copied in zip(old.graph.nodes, list(module.graph.nodes), strict=True):
                copied.meta["labels"] = _sizes_of(self.derived.found.values.get(node), sizes)
                if node in wanted:
                    _rewrite(copied, wanted[node])
                elif _is_assertion(node):
                    module.graph.erase_node(copied)
                if factors.get(node, 1.0) != 1.0:
                    multiply_(copied, factors[node])
            module.recompile()
        return new


class SymbolicGraphs:
    """The graphs of a model in train and eval mode, captured when first asked for."""

    def __init__(
        self,
        model: nn.Module,
        axes: AxisMap,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        overrides: Mapping[str, Sequence[str]] | None = None,
        *,
        logits_alone: bool,
    ) -> None:
        self.model, self.axes, self.overrides = model, axes, overrides
        self.logits_alone = logits_alone
        self.args, self.kwargs = args, kwargs

    @cached_property
    def modes(self) -> dict[bool, SymbolicGraph]:
        graphs = [
            capture_graph(
                self.model,
                self.args,
                self.kwargs,
                training=training,
                symbolic=True,
                lines=False,
                logits_alone=self.logits_alone,
            )
            for training in (False, True)
        ]
        derived = derive(self.model, graphs, self.overrides)
        if derived.axes.tensors != self.axes.tensors:
            raise UserError(
                "expected the model to have the same axes in train and eval mode and at any batch size, got"
                " others; make its forward do the same in both"
            )
        return {graph.training: SymbolicGraph(graph, derived) for graph in graphs}


def _sizes_of(value: Any, sizes: Sizes) -> list[tuple[int, ...]]:
    return [sizes.shape(labels) for labels in labels_in(value)]


def _is_assertion(node: torch.fx.Node) -> bool:
    """Checks that the export put in about the tensors it saw."""
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and base_name(op) == "_assert_tensor_metadata"


def _rewrite(node: torch.fx.Node, change: Change) -> None:
    new = change.arguments
    if change.target is not node.target:  # a split into pieces that are no longer equal
        dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        node.target, node.args, node.kwargs = change.target, (node.args[0], new["split_sizes"], dim), {}
        return
    op: Any = change.target
    names = [argument.name for argument in op._schema.arguments]
    node.args = tuple(
        _merged(node, new[name], old) if name in new else old
        for name, old in zip(names[: len(node.args)], node.args, strict=True)
    )
    node.kwargs = {k: _merged(node, new[k], old) if k in new else old for k, old in node.kwargs.items()}


def _merged(node: torch.fx.Node, new: Any, old: Any) -> Any:
    """The new integers; symbolic entries stay the nodes that they are, or become a fraction of them."""
    if isinstance(new, list | tuple):
        return [_merged(node, a, b) for a, b in zip(new, old, strict=True)]
    if isinstance(new, int):
        return new
    if isinstance(new, Fraction):
        with node.graph.inserting_before(node):
            times = node.graph.call_function(operator.mul, (old, new.numerator))
            return node.graph.call_function(operator.floordiv, (times, new.denominator))
    return old


class _Checked(torch.fx.Interpreter):
    """Runs a resized graph and compares the shape of every value with that of its labels."""

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        expected = n.meta.get("labels")
        if expected and n.op == "call_function" and [shape_of(t) for t in tensors] != expected:
            raise _GraphMismatch(f"{n.target} expected {expected}, got {[shape_of(t) for t in tensors]}")
        return value


class _GraphMismatch(RuntimeError):
    pass


def with_graph_forward(
    module: nn.Module, symbolic: SymbolicGraphs, widths: Widths, *, scaled: bool = False
) -> nn.Module | None:
    """The narrow copy with the resized graphs as its forward, or None where these do not fit it either.

    Hooks of its modules do not run then: a warning tells of those on forwards, whose effect on tensors is in
    the graph, and ``UserError`` refuses those on gradients.

    scaled: as for ``SymbolicGraph.resized``.
    """
    runner = _runner(copy.deepcopy(module), symbolic, widths, scaled)
    if runner is None:
        return None
    _check_hooks(module)
    module._forward_hooks.clear()  # of this module itself they would run beside the graph
    module._forward_pre_hooks.clear()
    module.__dict__["_captured_graphs"] = runner
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": _forward, "__module__": kind.__module__})
    return module


def _check_hooks(module: nn.Module) -> None:
    for name, part in module.named_modules():
        where = name or "the model itself"
        if part._backward_hooks or part._backward_pre_hooks:
            raise UserError(
                f"expected a forward that follows the sizes of its tensors, as {where} has hooks on"
                " gradients, which do not run where the captured graph stands in for the forward; take sizes"
                " from x.shape, or take the hooks off"
            )
        hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
        if any(not type(hook).__module__.startswith("torch.nn.utils.") for hook in hooks):
            warnings.warn(
                f"the captured graph stands in for the forward, so hooks of {where} do not run: what they"
                " make of tensors is in the graph, anything else that they do is not",
                stacklevel=2,
            )


def runs_graph(module: nn.Module) -> bool:
    """Whether the captured graph stands in for the module's forward."""
    return "_captured_graphs" in vars(module)


def _runner(module: nn.Module, symbolic: SymbolicGraphs, widths: Widths, scaled: bool) -> Runner | None:
    """Runs the graphs on modules like this one, which is without values."""
    try:
        modes = symbolic.modes
    except UserError:
        return None
    graphs = {training: mode.resized(widths, scaled=scaled) for training, mode in modes.items()}
    programs = {training: mode.graph.program for training, mode in modes.items()}

    def again(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Runner | None:
        other = SymbolicGraphs(
            symbolic.model,
            symbolic.axes,
            args,
            kwargs,
            symbolic.overrides,
            logits_alone=symbolic.logits_alone,
        )
        return _runner(module, other, widths, scaled)

    example = symbolic.args, dict(symbolic.kwargs)
    runner = Runner(graphs, programs, example, _fixed_sizes(list(programs.values())), again)
    return runner if all(_fits(module, runner, training) for training in (False, True)) else None


def _fixed_sizes(programs: Sequence[torch.export.ExportedProgram]) -> list[dict[int, int]]:
    """Per input of the user: the sizes that are a number in any of the graphs, of one that is a tensor."""
    found: list[dict[int, int]] = []
    for program in programs:
        nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
        specs = program.graph_signature.input_specs
        values = [node.meta["val"] for node, spec in zip(nodes, specs, strict=True) if spec.kind == _INPUT]
        sizes = [_numbers_in(v.shape) if isinstance(v, Tensor) else {} for v in values]
        found = [a | b for a, b in zip(found, sizes, strict=True)] if found else sizes
    return found


def _numbers_in(shape: Sequence[Any]) -> dict[int, int]:
    """Sizes that are no variables, or no longer, as where ``len(x)`` has made the batch a number."""
    known = {i: n if isinstance(n, int) else n.node.maybe_as_int() for i, n in enumerate(shape)}
    return {i: n for i, n in known.items() if n is not None}


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return self.__dict__["_captured_graphs"](self, args, kwargs)


def _fits(module: nn.Module, runner: Runner, training: bool) -> bool:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = fake_copy(module, mode, device_of(module, runner.example))
    args, kwargs = fake_inputs(runner.example, mode)
    graph = _Checked(runner.graphs[training])
    try:
        with torch.no_grad(), mode, quiet():
            runner.run(shadow, runner.flat_inputs(args, kwargs), graph.run, training)
    except Exception:  # whatever an operation raises on shapes that do not fit
        return False
    return True
