"""The interpreter: run a captured graph on labels instead of tensors."""

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from .graph import Graph, module_path
from .labels import Label, is_pinned, leaves, pin
from .normalised import size_is_removed
from .rules import Call, Labels, find_rule, is_view
from .rules.registry import base_name, labels_in, pinned_all

_NESTED = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
_FORM_UNKNOWN = (AttributeError, TypeError, IndexError, KeyError, ValueError, StopIteration, RuntimeError)


@dataclass(frozen=True)
class Flow:
    """What one operation makes of activations: their labels before and after."""

    inputs: Sequence[Labels]
    outputs: Sequence[Labels]
    adds: bool


@dataclass(frozen=True)
class Use:
    """One operation that reads a parameter.

    node: None in the decomposition of an operation of the graph.
    module: whose forward it is in.
    summed: the labels that it sums over.
    normalised: whether a norm takes the output's size away.
    """

    node: torch.fx.Node | None
    module: str
    summed: Sequence[Label] = ()
    normalised: bool = True


@dataclass(frozen=True)
class Computed:
    """An operation that reads a weight which is computed from parameters.

    node, module, summed, normalised: as of ``Use``.
    weight: the node that makes it; None in a decomposition.
    """

    node: torch.fx.Node | None
    module: str
    weight: torch.fx.Node | None
    summed: Sequence[Label]
    normalised: bool


@dataclass
class Propagation:
    """Everything that runs over the graphs of a model find out.

    values: node -> labels (or lists of them, or plain values).
    flows: per operation, in order.
    uses: parameter -> the operations that read it.
    computed: those that read what is computed from parameters.
    unknown: operation without a rule -> how often.
    fixed_norms: modules of norms that stay in evaluation mode: their statistics do not follow what they see.
    buffers: names of the tensors that are no parameters.
    """

    values: dict[torch.fx.Node, Any] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    computed: list[Computed] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    fixed_norms: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()


def propagate(graph: Graph, inputs: Sequence[Any], found: Propagation) -> Any:
    """Add to ``found`` what the graph says, from the labels of its placeholders; returns the outputs'."""
    return _Interpreter(found).run(graph.top, inputs, graph.program.graph_module)


def size_of(size: Any) -> int:
    """An integer, also of a symbolic size."""
    return size if isinstance(size, int) else int(size.node.hint)


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(size_of(s) for s in tensor.shape)


class _Interpreter:
    def __init__(self, found: Propagation) -> None:
        self.found = found
        self._inside = 0  # of decompositions

    def run(self, graph: torch.fx.Graph, inputs: Iterable[Any], root: Any) -> Any:
        values: dict[torch.fx.Node, Any] = {}
        given = iter(inputs)
        for node in graph.nodes:
            if node.op == "output":
                return _substituted(node.args[0], values)
            values[node] = self.evaluate(node, values, given, root)
            self.found.values[node] = values[node]
        return None

    def evaluate(self, node: torch.fx.Node, values: Mapping[Any, Any], given: Any, root: Any) -> Any:
        if node.op == "placeholder":
            return next(given)
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(root)
            constant = isinstance(value, torch.Tensor)
            return pinned_all(shape_of(value), "constant of the model") if constant else value
        args, kwargs = _substituted((node.args, node.kwargs), values)
        if node.target is operator.getitem:
            return args[0][args[1]]
        out = self.call(node, args, kwargs)
        self._carry_flags(node, labels_in((args, kwargs)), labels_in(out))
        return out

    def _carry_flags(self, node: torch.fx.Node, inputs: list[Labels], outputs: list[Labels]) -> None:
        """Note what depends on activations and what is read."""
        view = is_view(node.target)
        if not view:
            for label in (label for labels in inputs for label in labels):
                for leaf in leaves(label):
                    leaf.used = True
        active = [labels for labels in inputs if labels.activation]
        for labels in outputs:
            labels.activation = labels.activation or bool(active)
            if view and inputs:
                labels.origin = inputs[0].origin
        if active:
            adds = isinstance(node.target, torch._ops.OpOverload) and base_name(node.target) in ("add", "sub")
            self.found.flows.append(Flow(active, outputs, adds and len(active) == 2))

    def call(self, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        value = node.meta.get("val")
        tensors = [v for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor)]
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            nested = [x for x in args if isinstance(x, torch.fx.GraphModule)]
            if len(nested) == 1 and node.target.__name__ in _NESTED:
                given = args[list(args).index(nested[0]) + 1 :]
                return self.run(nested[0].graph, given, nested[0])
            return self.give_up(node, args, kwargs)
        if not tensors:
            return value
        if not isinstance(node.target, torch._ops.OpOverload):
            return self.give_up(node, args, kwargs)
        out = self.apply_rule(node, node.target, args, kwargs, tensors)
        if out is None:
            out = self.decompose(node, node.target, args, kwargs)
        return self.give_up(node, args, kwargs) if out is None else out

    def apply_rule(
        self,
        node: torch.fx.Node,
        op: torch._ops.OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: Sequence[torch.Tensor],
    ) -> Any:
        """Labels by the rule for the operation, or None where there is none that fits."""
        rule = find_rule(op)
        if rule is None:
            return None
        call = _call(node, op, args, kwargs, [shape_of(t) for t in tensors])
        try:
            result = rule(call)
        except _FORM_UNKNOWN:  # a form that the rule was not written for
            return None
        if result is None:
            return None
        out = [Labels(result)] if isinstance(result, Labels) else [Labels(labels) for labels in result]
        if [tuple(label.size for label in labels) for labels in out[: len(tensors)]] != call.shapes[
            : len(out)
        ]:
            return None
        self._record_uses(node, call)
        single = isinstance(node.meta["val"], torch.Tensor)
        return out[0] if single else out

    def _record_uses(self, node: torch.fx.Node, call: Call) -> None:
        if is_view(node.target):
            return
        for origin in dict.fromkeys(t.origin for t in call.tensors if t.origin is not None):
            summed = [label for name, label in call.summed if name == origin]
            self._record_use(origin, node, summed, size_is_removed(node, self.found.fixed_norms))
        for weight in {id(tensor): tensor for tensor, _ in call.computed}.values():
            summed = [label for tensor, label in call.computed if tensor is weight]
            made = [n for n in node.all_input_nodes if self.found.values.get(n) is weight]
            inside = self._inside or not made
            self.found.computed.append(
                Computed(
                    None if inside else node,
                    module_path(node),
                    None if inside else made[0],
                    summed,
                    size_is_removed(node, self.found.fixed_norms),
                )
            )

    def _record_use(
        self, origin: str, node: torch.fx.Node, summed: Sequence[Label] = (), normalised: bool = True
    ) -> None:
        use = Use(None if self._inside else node, module_path(node), summed, normalised)
        self.found.uses.setdefault(origin, []).append(use)

    def decompose(
        self, node: torch.fx.Node, op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Interpret the operation's decomposition into core operations, where it has one."""
        inputs = labels_in((args, kwargs))
        if all(is_pinned(label) for labels in inputs for label in labels):
            return None
        traced = _decomposition(op, torch.fx.node.map_arg((node.args, node.kwargs), _meta_value))
        if traced is None:
            return None
        if any(inner.target is op for inner in traced.graph.nodes):
            return None
        self._inside += 1
        try:
            out = self.run(traced.graph, inputs, traced)
        finally:
            self._inside -= 1
        made = [tuple(label.size for label in labels) for labels in labels_in(out)]
        leaves = pytree.tree_leaves(node.meta.get("val"))
        return out if made == [shape_of(t) for t in leaves if isinstance(t, torch.Tensor)] else None

    def give_up(self, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Pin all that the operation touches and count it."""
        inputs = labels_in((args, kwargs))
        if not all(is_pinned(label) for labels in inputs for label in labels):
            self.found.unknown[str(node.target)] += 1
        for labels in inputs:
            for label in labels:
                pin(label, f"no rule for {node.target}")
            if labels.origin is not None:
                self._record_use(labels.origin, node)
        return pytree.tree_map(
            lambda v: pinned_all(shape_of(v), f"made by {node.target}") if isinstance(v, torch.Tensor) else v,
            node.meta.get("val"),
        )


def _substituted(tree: Any, values: Mapping[Any, Any]) -> Any:
    return torch.fx.node.map_arg(tree, lambda node: values[node])


def _meta_value(node: torch.fx.Node) -> Any:
    return node.meta.get("val")


def _call(
    node: torch.fx.Node,
    op: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    shapes: list[tuple[int, ...]],
) -> Call:
    schema = op._schema.arguments
    names = [argument.name for argument in schema]
    arguments = {a.name: a.default_value for a in schema if a.has_default_value() or a.name == "bias"}
    arguments.update(zip(names, args, strict=False))
    arguments.update(kwargs)
    raw_args, raw_kwargs = torch.fx.node.map_arg((node.args, node.kwargs), _meta_value)
    raw = {**dict(zip(names, raw_args, strict=False)), **raw_kwargs}
    users = [user for user in node.users if user.target is operator.getitem and user.users]
    read = frozenset(user.args[1] for user in users if isinstance(user.args[1], int))
    name = base_name(op)
    return Call(name, f"{name} at {node.name}", arguments, raw, shapes, read)


def _decomposition(op: torch._ops.OpOverload, inputs: Any) -> torch.fx.GraphModule | None:
    """The operation traced into core operations on meta tensors, or None."""
    table = torch._decomp.core_aten_decompositions()
    if op not in table and not op._can_decompose():
        return None
    flat, spec = pytree.tree_flatten(inputs)
    places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]

    def run(*tensors: torch.Tensor) -> Any:
        filled = list(flat)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return table[op](*args, **kwargs) if op in table else op.decompose(*args, **kwargs)

    metas = [torch.empty(shape_of(flat[i]), dtype=flat[i].dtype, device="meta") for i in places]
    try:
        traced: torch.fx.GraphModule = make_fx(run, decomposition_table={})(*metas)
    except Exception:  # whatever a decomposition raises: it cannot be had
        return None
    return traced
