"""From labels to the axis map: which leaves are axes, what they are called, which are cut by default."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from msfusion.core import axes as core
from msfusion.core.axes import AxisInfo, AxisMap, Dim, Widths, axes_of, counted, narrowed

from .degrees import degrees_of
from .graph import Graph, main_output, named_tensors, tied_names
from .labels import Label, factors, leaves, mark_contracted, pin, resolve, segments, unify
from .operands import product_operand
from .overrides import declared_labels
from .propagate import Propagation, Use, propagate, shape_of
from .residual import residual_leaves
from .rules import Labels
from .rules.registry import free, labels_in, pinned_all

OUTPUT = "output of the model"
"""Why a dimension is pinned that the model's output has."""


@dataclass(frozen=True)
class Owed:
    """A product that sums over dims for which its parameter cannot have the factor of the scale rule, as that
    is read in another way as well (the head of a language model whose table also embeds) or holds integers,
    or as its weight is computed from parameters.

    node, module: the operation, and whose forward it is in.
    powers: how the weight itself changes with the units of an axis (``degrees.py``).
    """

    node: torch.fx.Node
    module: str
    dims: tuple[Dim, ...]
    powers: tuple[tuple[core.Axis, float], ...] = ()

    def factor(self, widths: Widths) -> float:
        """What the product has to be multiplied by."""
        powers = [(dim, 1.0) for dim in self.dims] + list(self.powers)
        return math.prod(math.pow(dim.size / narrowed(dim, widths), power) for dim, power in powers)


@dataclass
class Derived:
    """The axis map of a model and the labels that it was read from.

    names: leaf -> axis name; with it the labels give the size of every intermediate value at other widths.
    owed: products that take up the scale rule themselves.
    """

    axes: AxisMap
    found: Propagation
    names: Mapping[Label, str]
    owed: Sequence[Owed]


def derive(
    model: nn.Module, graphs: Sequence[Graph], overrides: Mapping[str, Sequence[str]] | None = None
) -> Derived:
    """Propagate labels through the graphs of the model and read the axis map from them. The model's modes are
    switched for a moment."""
    tensors = declared_labels(named_tensors(model), overrides or {})
    inputs = [_input_labels(graph, tensors) for graph in graphs]
    ties = tied_names(model)
    for other, name in ties.items():
        if other in tensors and name in tensors:
            for label, same in zip(tensors[name], tensors[other], strict=True):
                unify(label, same)
    _share_origins(tensors, ties)
    buffers = frozenset(name for name, _ in model.named_buffers(remove_duplicate=False))
    found = Propagation(fixed_norms=_fixed_norms(model), buffers=buffers)
    for graph, given in zip(graphs, inputs, strict=True):
        _pin_outputs(graph, propagate(graph, given, found))
    for labels in tensors.values():
        for leaf in (leaf for label in labels for leaf in leaves(label)):
            if not leaf.used:
                pin(leaf, "not used by the traced forward")
    for other, name in ties.items():
        if other in tensors:
            tensors.setdefault(name, tensors[other])
    return _Reader(model, tensors, found).derived(ties)


def _fixed_norms(model: nn.Module) -> frozenset[str]:
    """Norms that a model keeps in evaluation mode while it trains."""
    before = {part: part.training for part in model.modules()}
    model.train()
    fixed = {n for n, part in model.named_modules() if isinstance(part, _NormBase) and not part.training}
    for part, training in before.items():
        part.training = training
    return frozenset(fixed)


def _input_labels(graph: Graph, tensors: dict[str, Labels]) -> list[Any]:
    """Labels of the placeholders; those of parameters and buffers are also put into ``tensors``."""
    inputs: list[Any] = []
    placeholders = [node for node in graph.top.nodes if node.op == "placeholder"]
    for spec, node in zip(graph.program.graph_signature.input_specs, placeholders, strict=True):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            inputs.append(value)
        elif node in graph.inputs:
            name = graph.inputs[node]
            inputs.append(tensors.setdefault(name, free(shape_of(value))))
        else:
            given = spec.kind is InputKind.USER_INPUT
            labels = pinned_all(shape_of(value), "input of the model" if given else "constant of the model")
            labels.activation = given
            inputs.append(labels)
    return inputs


def _share_origins(tensors: Mapping[str, Labels], ties: Mapping[str, str]) -> None:
    for name, labels in tensors.items():
        labels.origin = ties.get(name, name)


def _pin_outputs(graph: Graph, output: Any) -> None:
    spec = graph.program.call_spec.out_spec
    assert spec is not None
    structured = pytree.tree_unflatten(list(output), spec)
    for labels in labels_in(main_output(structured, logits_alone=graph.logits_alone)):
        for label in labels:
            pin(label, OUTPUT)


def output_of(graph: Graph) -> torch.fx.Node:
    """The first tensor of what reaches the loss."""
    spec, (nodes,) = graph.program.call_spec.out_spec, graph.top.output_node().args
    assert spec is not None
    assert isinstance(nodes, Sequence)
    structured = pytree.tree_unflatten(list(nodes)[-spec.num_leaves :], spec)
    main = main_output(structured, logits_alone=graph.logits_alone)
    found: torch.fx.Node = next(
        node
        for node in pytree.tree_leaves(main)
        if isinstance(node, torch.fx.Node) and isinstance(node.meta["val"], torch.Tensor)
    )
    return found


@dataclass
class _Reader:
    """Names leaves in the order in which the tensors show them and writes labels as dims.

    places: label of a dimension -> which dimension of its tensor that is.
    """

    model: nn.Module
    tensors: Mapping[str, Labels]
    found: Propagation
    names: dict[Label, str] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)
    places: dict[Label, int] = field(init=False)

    def __post_init__(self) -> None:
        self.places = {label: i for labels in self.tensors.values() for i, label in enumerate(labels)}

    def derived(self, ties: Mapping[str, str]) -> Derived:
        own = named_tensors(self.model)
        dims = {name: self.dims_of(name, tensor) for name, tensor in own.items()}
        inner = _inner_axes(dims)
        residual = {self.names[leaf] for leaf in residual_leaves(self.found.flows) if leaf in self.names}
        summed = {
            name: self.summed_dims(name, dims[name]) if _takes_fractions(tensor) else {}
            for name, tensor in own.items()
        }
        owed = [*self.owed(summed), *self.owed_by_computed()]
        infos = {
            name: AxisInfo(leaf.size, name in residual, _why_whole(name, leaf, inner))
            for leaf, name in self.names.items()
        }
        axes = AxisMap(
            tensors=dims,
            axes=infos,
            summed={name: found for name, found in summed.items() if found},
            normalised=frozenset(
                name for name, uses in self.found.uses.items() if all(use.normalised for use in uses)
            ),
            ties=dict(ties),
            pinned=self.pins,
            unknown=dict(self.found.unknown),
        )
        return Derived(axes, self.found, self.names, owed)

    def dims_of(self, name: str, tensor: torch.Tensor) -> tuple[Dim, ...]:
        if name not in self.tensors:
            labels = pinned_all(tensor.shape, "not reached by the traced forward")
        else:
            labels = self.tensors[name]
        return tuple(self.dim(label, name, i, len(labels)) for i, label in enumerate(labels))

    def dim(self, label: Label, tensor: str, index: int, ndim: int) -> Dim:
        label = resolve(label)
        if label.form == "leaf":
            return self.leaf_dim(label, tensor, index, ndim)
        parts = factors(label) if label.form == "product" else segments(label)
        return _joined(label.form, [self.dim(part, tensor, index, ndim) for part in parts])

    def leaf_dim(self, leaf: Label, tensor: str, index: int, ndim: int) -> Dim:
        if leaf.reason or leaf.size == 1:
            if leaf.size > 1:
                self.pins.setdefault(f"{tensor}:{index}", leaf.reason or "")
            return core.Fixed(leaf.size)
        if leaf not in self.names:
            self.names[leaf] = self.new_name(leaf, tensor, ndim)
        return core.Axis(self.names[leaf], leaf.size)

    def new_name(self, leaf: Label, tensor: str, ndim: int) -> str:
        """``layer1.0.conv1.out``: the module (or parameter) and whether it sums over the axis."""
        owner, _, last = tensor.rpartition(".")
        base = owner if last in ("weight", "bias") and owner else tensor
        if leaf.declared:
            base = leaf.declared
        elif ndim > 1:
            base += ".in" if leaf in self.summed_leaves(tensor) else ".out"
        taken = set(self.names.values())
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}~{number}"
        return name

    def summed_leaves(self, tensor: str) -> set[Label]:
        """Leaves over which every operation that reads the tensor sums."""
        found = self.found.uses.get(tensor, [])
        uses = [{x for label in use.summed for x in leaves(label)} for use in found]
        return set.intersection(*uses) if uses else set()

    def summed_dims(self, tensor: str, own: Sequence[Dim]) -> dict[int, Dim]:
        """Dimensions over which every operation that reads the tensor sums, and what of each, where that has
        an axis; none of which the factor cannot be told for every index."""
        first, *others = [self.dims_summed_in(tensor, use) for use in self.found.uses.get(tensor, [])] or [{}]
        return {
            place: dim
            for place, dim in first.items()
            if place is not None
            and all(other.get(place) == dim for other in others)
            and (dim == own[place] or counted(dim) is not None)
        }

    def dims_summed_in(self, tensor: str, use: Use) -> dict[int | None, Dim]:
        """Dimension of the tensor -> what of it the operation sums over."""
        dims: dict[int | None, list[Dim]] = {}
        for label in dict.fromkeys(use.summed):
            if axes_of(dim := self.named_dim(label)):
                dims.setdefault(self.place_of(tensor, label, dim), []).append(dim)
        return {place: _joined("product", parts) for place, parts in dims.items()}

    def place_of(self, tensor: str, label: Label, dim: Dim) -> int | None:
        """In which dimension of a tensor that of a view of it lies; None where it could be several."""
        if label in self.places:
            return self.places[label]
        own = [self.named_dim(each) for each in self.tensors[tensor]]
        places = [i for i, each in enumerate(own) if {*axes_of(dim)} <= {*axes_of(each)}]
        return places[0] if len(places) == 1 else None

    def owed(self, summed: Mapping[str, Mapping[int, Dim]]) -> Iterator[Owed]:
        """Products whose parameter cannot have all of the factor; where no operand can have it either, or not
        by one number, the dims are not cut unless named."""
        for name, own in summed.items():
            for use in self.found.uses.get(name, []):
                found = self.dims_summed_in(name, use).items()
                dims = tuple(dim for place, dim in found if place is None or own.get(place) != dim)
                one_factor = None not in map(counted, dims)
                if not dims or (use.normalised and one_factor):
                    continue
                if one_factor and use.node is not None and product_operand(use.node) is not None:
                    yield Owed(use.node, use.module, dims)
                    continue
                axes = {axis for dim in dims for axis in axes_of(dim)}
                for label in use.summed:
                    if axes & {*axes_of(self.named_dim(label))}:
                        mark_contracted(label)

    def owed_by_computed(self) -> Iterator[Owed]:
        """Products with weights that are computed from parameters; where it is not known how these change
        with the units of an axis, or nothing of the product can be multiplied, no axis of theirs is cut
        unless named."""
        for product in self.found.computed:
            dims = [dim for dim in map(self.named_dim, product.summed) if axes_of(dim)]
            powers = self.powers_of(product.weight) if product.weight is not None else None
            scalable = product.node is not None and product_operand(product.node) is not None
            if powers is None or not (scalable or product.normalised) or None in map(counted, dims):
                made = self.found.values[product.weight] if product.weight is not None else ()
                for label in (*product.summed, *made):
                    mark_contracted(label)
            elif (dims or powers) and product.node is not None and not product.normalised:
                yield Owed(product.node, product.module, tuple(dims), powers)

    def powers_of(self, weight: torch.fx.Node) -> tuple[tuple[core.Axis, float], ...] | None:
        degrees = degrees_of(weight, self.found)
        if degrees is None:
            return None
        named = [(self.named_dim(leaf), float(power)) for leaf, power in degrees.items()]
        return tuple((dim, power) for dim, power in named if isinstance(dim, core.Axis))

    def named_dim(self, label: Label) -> Dim:
        """A label as a dim, leaves without a name as fixed."""
        label = resolve(label)
        if label.form == "leaf":
            return core.Axis(self.names[label], label.size) if label in self.names else core.Fixed(label.size)
        parts = factors(label) if label.form == "product" else segments(label)
        return _joined(label.form, [self.named_dim(part) for part in parts])


def _takes_fractions(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _joined(form: str, parts: Sequence[Dim]) -> Dim:
    """Product or concatenation, neighbouring fixed parts made one."""
    out: list[Dim] = []
    for part in parts:
        if out and isinstance(part, core.Fixed) and isinstance(out[-1], core.Fixed):
            last = out[-1].size
            out[-1] = core.Fixed(last * part.size if form == "product" else last + part.size)
        else:
            out.append(part)
    if len(out) == 1:
        return out[0]
    return core.Product(tuple(out)) if form == "product" else core.Concat(tuple(out))


def _inner_axes(tensors: Mapping[str, Iterable[Dim]]) -> dict[str, str]:
    """Axis -> an axis that it lies behind in some product."""
    inner: dict[str, str] = {}

    def walk(dim: Dim, outer: str | None) -> None:
        match dim:
            case core.Axis(name=name) if outer is not None:
                inner.setdefault(name, outer)
            case core.Product(factors=parts):
                for part in parts:
                    walk(part, outer)
                    outer = outer or next(iter(axes_of(part)), None)
            case core.Concat(parts=parts):
                for part in parts:
                    walk(part, outer)
            case _:
                pass

    for dims in tensors.values():
        for dim in dims:
            walk(dim, None)
    return inner


def _why_whole(name: str, leaf: Label, inner: Mapping[str, str]) -> str | None:
    if name in inner:
        return f"lies inside each unit of {inner[name]}"
    return "summed over where no parameter makes up for it" if leaf.contracted and not leaf.declared else None
