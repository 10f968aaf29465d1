"""The public entry: a user's module in, its axis map and narrow modules out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from msfusion.core.axes import AxisMap, Fixed
from msfusion.errors import UserError

from .derive import OUTPUT, derive, output_of
from .graph import Graph, copy_with, named_tensors, source_line
from .graph_module import SymbolicGraphs
from .modes import capture_modes
from .narrow import Source, narrow_module


class Capture:
    """A model that has been captured.

    axes: which axes its tensors follow.
    source: what was captured, from which narrow modules are made.
    """

    axes: AxisMap
    source: Source

    def __init__(self, source: Source) -> None:
        self.axes = source.axes
        self.source = source

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters, tied ones once."""
        return [name for name, _ in self.source.model.named_parameters()]

    @property
    def trained(self) -> list[str]:
        """Those that want a gradient; the others, frozen ones, stay as they are, like buffers."""
        return [name for name, p in self.source.model.named_parameters() if p.requires_grad]

    @property
    def logits_alone(self) -> bool:
        """Whether it holds for a loss that reads the logits of an output alone."""
        return self.source.symbolic.logits_alone

    def head(self) -> dict[str, int]:
        """Parameter -> its dimension that counts the classes: the last one of the model's output."""
        classes = int(output_of(self.source.graphs[0]).meta["val"].shape[-1])
        head: dict[str, list[int]] = {}
        for place in (place for place, why in self.axes.pinned.items() if why == OUTPUT):
            name, _, d = place.rpartition(":")
            if self.axes.tensors[name][int(d)] == Fixed(classes):
                head.setdefault(name, []).append(int(d))
        return {name: min(dims) if self._has_rows_first(name) else max(dims) for name, dims in head.items()}

    def _has_rows_first(self, name: str) -> bool:
        """Whether a weight is that of a linear layer, of which the second dimension is summed over; in
        products that are written otherwise it is the first. Matters for layers from classes to classes."""
        nodes = [use.node for use in self.source.derived.found.uses.get(name, []) if use.node is not None]
        return any(node.target is torch.ops.aten.linear.default for node in nodes)

    def head_bias(self) -> str | None:
        """The parameter with one entry per class that a last linear layer adds to the model's output and
        nothing else reads; None where the output is made otherwise."""
        found = {_added_last(graph) for graph in self.source.graphs}
        (name,) = found if len(found) == 1 else (None,)
        name = self.axes.ties.get(name, name) if name else None
        return name if name in dict(self.source.model.named_parameters()) else None

    def owed(self, widths: Mapping[str, int]) -> list[str]:
        """Where products are that have the factor of the scale rule themselves at these widths."""
        return [source_line(one.node) for one in self.source.derived.owed if one.factor(widths) != 1]

    def narrow(self, widths: Mapping[str, int], *, scaled: bool = False) -> nn.Module:
        """A new module of the given widths (axis -> units kept; others are whole), same state dict keys.

        Parameters, and buffers that carry a cut axis, are on the meta device: shapes without values. Other
        buffers are copies.

        scaled: products whose parameters cannot have the factor of the scale rule (core/scale.py), as these
            are read in another way as well, have it themselves.
        Raises ``UserError`` for an unknown axis, a width outside of 1..size, and for a
        module whose code cannot run at these widths.
        """
        for name, width in widths.items():
            self._check_width(name, width)
        return narrow_module(self.source, dict(widths), scaled=scaled)

    def _check_width(self, name: str, width: int) -> None:
        if name not in self.axes.axes:
            known = ", ".join(self.axes.axes) or "none"
            raise UserError(f"expected widths of axes of the model, got {name!r}; its axes are {known}")
        size = self.axes.axes[name].size
        if not 1 <= width <= size:
            raise UserError(f"expected a width of 1 to {size} for axis {name}, got {width}")


def _added_last(graph: Graph) -> str | None:
    """The tensor that a linear layer adds to the output, where both are read once."""
    output = output_of(graph)
    if output.target != torch.ops.aten.linear.default or len(output.args) < 3:
        return None
    bias = output.args[2]
    if not isinstance(bias, torch.fx.Node) or len(output.users) > 1 or len(bias.users) > 1:
        return None
    return graph.inputs.get(bias)


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, Sequence[str]] | None = None,
    logits_alone: bool = False,
) -> Capture:
    """Find the axes of a model from example inputs (a batch of two or more).

    The model is neither run nor changed, and its parameters may be on meta: it is exported on tensors that
    hold no memory, in eval mode, and in train mode too if that is another program.

    overrides: tensors declared by hand: a pattern over parameter names -> a dim per dimension, for instance
    ``{"*.qkv.weight": ["3*{}.heads:4*16", "embed:64"]}``, where ``{}`` is what ``*`` stands for.
    logits_alone: of an output that is a mapping with ``logits`` nothing else is read, as by the default loss;
    otherwise every tensor of the output stays whole.
    """
    kwargs = dict(kwargs or {})
    graphs = capture_modes(model, args, kwargs, logits_alone=logits_alone)
    skeleton = _skeleton(model)
    derived = derive(skeleton, graphs, overrides)
    symbolic = SymbolicGraphs(skeleton, derived.axes, args, kwargs, overrides, logits_alone=logits_alone)
    return Capture(Source(skeleton, graphs, derived, args, kwargs, symbolic))


def axes(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, Sequence[str]] | None = None,
    logits_alone: bool = False,
) -> AxisMap:
    """The axis map of a model alone; arguments and errors as for ``capture``."""
    return capture(model, example_inputs, kwargs, overrides=overrides, logits_alone=logits_alone).axes


def _skeleton(model: nn.Module) -> nn.Module:
    """The model without its parameters, which are left on meta; buffers are copies."""
    tensors = named_tensors(model).values()
    return copy_with(
        model,
        {
            id(t): torch.empty_like(t, device="meta") if isinstance(t, nn.Parameter) else t.detach().clone()
            for t in tensors
        },
    )
