"""The captured graph in place of a module's forward, where the module's own code cannot run narrow.

Code with sizes written out (``view(-1, 2048)``) or derived from another width (``embed // n_head``) does not
follow its tensors. The graph does, once its size constants are replaced by those that the labels give. It is
captured with symbolic batch and sequence lengths, once in train and once in eval mode, and what every
operation makes of the narrow tensors is compared with the labels before it is used.
"""

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from .propagate import shape_of
from .resize import Change, Sizes, changes
from .rules.registry import base_name, labels_in

_INPUT = InputKind.USER_INPUT


@dataclass(frozen=True)
class SymbolicGraph:
    """A graph captured with symbolic sizes, and the labels on it."""

    graph: Graph
    derived: Derived

    def resized(self, widths: Widths) -> torch.fx.GraphModule:
        """A copy of the graph with its size constants at other widths."""
        sizes = Sizes(self.derived.names, widths)
        wanted = {c.node: c for c in changes(self.derived.found, self.graph.nodes(), sizes)}
        new: torch.fx.GraphModule = copy.deepcopy(self.graph.program.graph_module)
        for old, module in zip(self.graph.modules(), _graph_modules(new), strict=True):
            for node, copied in zip(old.graph.nodes, list(module.graph.nodes), strict=True):
                copied.meta["labels"] = _sizes_of(self.derived.found.values.get(node), sizes)
                if node in wanted:
                    _rewrite(copied, wanted[node])
                elif _is_assertion(node):
                    module.graph.erase_node(copied)
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
    ) -> None:
        self.model, self.axes, self.overrides = model, axes, overrides
        self.args, self.kwargs = args, kwargs

    @cached_property
    def modes(self) -> dict[bool, SymbolicGraph]:
        graphs = [
            capture_graph(self.model, self.args, self.kwargs, training=training, symbolic=True)
            for training in (False, True)
        ]
        derived = derive(self.model, graphs, self.overrides)
        if derived.axes.tensors != self.axes.tensors:
            raise UserError(
                "expected the model to have the same axes in train and eval mode and at any batch size, got"
                " others; make its forward do the same in both"
            )
        return {graph.training: SymbolicGraph(graph, derived) for graph in graphs}


def _graph_modules(top: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    return [m for m in top.modules() if isinstance(m, torch.fx.GraphModule)]


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


@dataclass
class Runner:
    """Runs the graph of the mode that a module is in on that module's tensors.

    graphs, programs: training -> the resized graph, and the program that it was made from.
    example: the inputs that were captured, whose form every call must have.
    fixed: per flat input, the sizes that the graphs hold as numbers: dimension -> size.
    placed: the graphs on the devices that they have run on.
    """

    graphs: Mapping[bool, torch.fx.GraphModule]
    programs: Mapping[bool, torch.export.ExportedProgram]
    example: tuple[tuple[Any, ...], dict[str, Any]]
    fixed: Sequence[Mapping[int, int]]
    placed: dict[tuple[bool, torch.device], torch.fx.GraphModule] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Runner":
        """Copies of the module share it: it holds none of the module's tensors."""
        return self

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        flat = self.flat_inputs(args, kwargs)
        return self.run(module, flat, self.on(module.training, _device(flat)), module.training)

    def run(self, module: nn.Module, flat: list[Any], graph: Any, training: bool) -> Any:
        """Call ``graph`` with the tensors of the module, the captured constants and the inputs."""
        program = self.programs[training]
        tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        given = iter(flat)
        inputs: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.target in tensors:
                inputs.append(tensors[spec.target])
            elif spec.target is not None:
                constant = program.constants[spec.target]
                inputs.append(constant.to(_device(flat)) if isinstance(constant, Tensor) else constant)
            else:
                inputs.append(next(given))
        out_spec = program.call_spec.out_spec
        assert out_spec is not None
        return pytree.tree_unflatten(list(graph(*inputs)), out_spec)

    def flat_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs in the order of the graph; ``UserError`` where they are not of the captured form."""
        example_args, example_kwargs = self.example
        if len(args) != len(example_args) or kwargs.keys() != example_kwargs.keys():
            raise self._other_form()
        ordered = {name: kwargs[name] for name in example_kwargs}
        flat, spec = pytree.tree_flatten((args, ordered))
        example, example_spec = pytree.tree_flatten(self.example)
        if spec != example_spec:
            raise self._other_form()
        for value, captured, sizes in zip(flat, example, self.fixed, strict=True):
            if not isinstance(captured, Tensor) and value != captured:
                raise self._other_form()
            for dim, size in sizes.items():
                if value.shape[dim] != size:
                    raise UserError(
                        f"expected inputs of size {size} in dimension {dim}, as captured, got"
                        f" {tuple(value.shape)}; capture the model with inputs of the size it is trained with"
                    )
        return flat

    def _other_form(self) -> UserError:
        args, kwargs = self.example
        form = [f"{len(args)} positional"] + [f"{name}=" for name in kwargs]
        return UserError(
            f"expected inputs of the form that was captured ({', '.join(form)}, and other values than tensors"
            " as there), got others; capture the model with inputs of the form it is trained with"
        )

    def on(self, training: bool, device: torch.device) -> torch.fx.GraphModule:
        """The graph with the devices that it names replaced by the one it runs on."""
        key = training, device
        if key not in self.placed:
            graph = copy.deepcopy(self.graphs[training])
            for module in _graph_modules(graph):
                for node in module.graph.nodes:
                    node.args, node.kwargs = pytree.tree_map_only(
                        torch.device, lambda _: device, (tuple(node.args), dict(node.kwargs))
                    )
                module.recompile()
            self.placed[key] = graph
        return self.placed[key]


def _device(flat: list[Any]) -> torch.device:
    return next((value.device for value in flat if isinstance(value, Tensor)), torch.device("cpu"))


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


def with_graph_forward(module: nn.Module, symbolic: SymbolicGraphs, widths: Widths) -> nn.Module | None:
    """The narrow copy with the resized graphs as its forward, or None where these do not fit it either."""
    try:
        modes = symbolic.modes
    except UserError:
        return None
    graphs = {training: mode.resized(widths) for training, mode in modes.items()}
    programs = {training: mode.graph.program for training, mode in modes.items()}
    fixed = _fixed_sizes(list(programs.values()))
    runner = Runner(graphs, programs, (symbolic.args, dict(symbolic.kwargs)), fixed)
    for training in (False, True):
        if not _fits(module, runner, training):
            return None
    module.__dict__["_captured_graphs"] = runner
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": _forward, "__module__": kind.__module__})
    return module


def _fixed_sizes(programs: Sequence[torch.export.ExportedProgram]) -> list[dict[int, int]]:
    """Per input of the user: the sizes that are a number in any of the graphs, of one that is a tensor."""
    found: list[dict[int, int]] = []
    for program in programs:
        nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
        specs = program.graph_signature.input_specs
        values = [node.meta["val"] for node, spec in zip(nodes, specs, strict=True) if spec.kind == _INPUT]
        sizes = [
            {i: n for i, n in enumerate(v.shape) if isinstance(n, int)} if isinstance(v, Tensor) else {}
            for v in values
        ]
        found = [a | b for a, b in zip(found, sizes, strict=True)] if found else sizes
    return found


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
