"""The second proof: a narrow model computes what the full one does with the other units silenced.

Silenced units are computed but not taken in: every weight that an operation multiplies them with, to sum
over them, is zero. That is the same as leaving them out, unless something else mixes the units of the axis: a
norm, a softmax or a mean over it. Where the graph shows such an operation the proof is not defined, and the
axis is left to the permutation proof alone.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from msfusion.core.axes import AxisMap, Dim, Selection, axes_of, positions
from msfusion.core.merge import take
from msfusion.errors import UserError

from .capture import Capture
from .check import TOLERANCE, calibrate, cast, difference, in_dtype, in_some_type, outputs_of, randomised
from .derive import Derived
from .graph import copy_with, named_tensors
from .labels import Label, factors, leaves
from .operands import arguments
from .propagate import Propagation
from .rules import Labels
from .rules.registry import base_name, labels_in

_TRAILING = {"layer_norm": "normalized_shape", "rms_norm": "normalized_shape", "native_layer_norm": ""}
_ALONG_DIM = {"softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax"}
_IN_GROUPS = {"group_norm", "native_group_norm"}


def silence_errors(model: nn.Module, captured: Capture) -> dict[str, float]:
    """For each axis that may be cut and whose units nothing else mixes: the difference, relative to the
    outputs, between the model with that axis (and the others) at half its units and the full model with the
    rest of them silenced. 0 but for rounding; above ``TOLERANCE`` the map is wrong for that axis."""
    mixed = mixed_axes(captured.source.derived)
    return errors_of(model, captured, [name for name in captured.axes.cuttable if name not in mixed])


def errors_of(model: nn.Module, captured: Capture, names: Sequence[str]) -> dict[str, float]:
    """The same for these axes, whether anything else mixes their units or not."""
    return in_some_type(lambda dtype: _errors(model, captured, names, dtype))


def _errors(
    model: nn.Module, captured: Capture, names: Sequence[str], dtype: torch.dtype
) -> dict[str, float]:
    source = captured.source
    probe = in_dtype(randomised(model, torch.Generator().manual_seed(0)), dtype).eval()
    inputs = pytree.tree_map_only(torch.Tensor, lambda t: cast(t, dtype), (source.args, dict(source.kwargs)))
    calibrate(probe, *inputs)
    together = _error(probe, captured, names, inputs) if names else None
    if together is not None and together <= TOLERANCE:
        return dict.fromkeys(names, together)
    alone = {name: _error(probe, captured, [name], inputs) for name in names}
    return {name: error for name, error in alone.items() if error is not None}


def _error(probe: nn.Module, captured: Capture, names: Iterable[str], inputs: Any) -> float | None:
    """The difference with these axes cut; None where no module can be had at such widths."""
    sizes = {name: captured.axes.axes[name].size for name in names}
    widths = {name: max(1, size // 2) for name, size in sizes.items()}
    selection = {name: ((sizes[name] - width, sizes[name]),) for name, width in widths.items()}
    try:
        narrow = captured.narrow(widths)
    except UserError:
        return None
    full = named_tensors(probe)
    values = {
        id(tensor): take(full[name], captured.axes.tensors[name], selection).detach()
        for name, tensor in named_tensors(narrow).items()
    }
    alone = captured.logits_alone
    found = outputs_of(copy_with(narrow, values).eval(), *inputs, logits_alone=alone)
    silent = _silenced(probe, captured.axes, selection)
    return difference(found, outputs_of(silent, *inputs, logits_alone=alone))


def _silenced(probe: nn.Module, axes: AxisMap, selection: Selection) -> nn.Module:
    silent = copy.deepcopy(probe)
    tensors = named_tensors(silent)
    with torch.no_grad():
        for name in axes.summed:
            for axis in axes.summed_axes(name) & selection.keys():
                _silence(tensors[name], axes.tensors[name], {axis: selection[axis]})
    return silent


def _silence(tensor: torch.Tensor, dims: tuple[Dim, ...], selection: Selection) -> None:
    for i, dim in enumerate(dims):
        if selection.keys() & set(axes_of(dim)):
            dropped = torch.ones(tensor.shape[i], dtype=torch.bool)
            for start, stop in positions(dim, selection):
                dropped[start:stop] = False
            tensor.index_fill_(i, dropped.nonzero().flatten().to(tensor.device), 0.0)


def mixed_axes(derived: Derived) -> set[str]:
    """Axes whose units some operation brings together, but not in a weighted sum that can be silenced."""
    found, names = derived.found, derived.names
    return {
        names[leaf]
        for node in found.values
        if isinstance(node.target, torch._ops.OpOverload) and labels_in(found.values[node])
        for leaf in (*_normalised(found, node), *_vanishing(derived, node))
        if leaf in names
    }


def _normalised(found: Propagation, node: torch.fx.Node) -> Iterator[Label]:
    """Leaves along which the operation computes statistics."""
    inputs = _inputs(found, node)
    name = base_name(node.target)  # type: ignore[arg-type]
    if not inputs:
        return
    x, given = inputs[0], arguments(node)
    if name in _TRAILING:
        for label in x[-len(given["normalized_shape"]) :]:
            yield from leaves(label)
    elif name in _ALONG_DIM:
        yield from leaves(x[given["dim"]])
    elif name in _IN_GROUPS:
        groups = given.get("num_groups") or given["group"]
        for factor in factors(x[1]):
            if groups % factor.size or groups == 1:
                yield from leaves(factor)
            else:
                groups //= factor.size


def _vanishing(derived: Derived, node: torch.fx.Node) -> Iterator[Label]:
    """Leaves that the operation sums (or picks) away, not in a product with a weight that can be silenced."""
    found, axes = derived.found, derived.axes
    inputs = _inputs(found, node)
    after = _leaves(labels_in(found.values[node]))
    weights = [labels for labels in inputs if labels.origin is not None and not labels.activation]
    active = _leaves(labels for labels in inputs if labels.activation)
    for leaf in _leaves(inputs) - after:
        axis = derived.names.get(leaf, "")
        silenced = any(
            axis in axes.summed_axes(labels.origin or "") for labels in weights if leaf in _leaves([labels])
        )
        if not (silenced and leaf in active):
            yield leaf


def _inputs(found: Propagation, node: torch.fx.Node) -> list[Labels]:
    return labels_in([found.values.get(argument) for argument in node.all_input_nodes])


def _leaves(tensors: Iterable[Labels]) -> set[Label]:
    return {leaf for labels in tensors for label in labels for leaf in leaves(label)}
