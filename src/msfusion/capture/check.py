"""The permutation proof: permuting the units of an axis in every tensor must leave the outputs unchanged."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from msfusion.core.axes import Axis, AxisMap, Concat, Dim, Fixed, Product, axes_of
from msfusion.errors import UserError

from .graph import main_output, named_tensors

TOLERANCE = 1e-4
"""Relative errors of wrong maps start at about 1e-3; right ones stay below 1e-6, in float64 below 1e-12."""

_BatchNorm = nn.modules.batchnorm._BatchNorm


def permutation_errors(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    axes: AxisMap,
    *,
    logits_alone: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """For each axis the relative change of the outputs when its units are permuted: 0 but for rounding.

    Runs a copy of the model in float64 (float32 where the model refuses that) with every value that
    initialisation leaves alike drawn at random, so that no mistake hides behind equal units; parameters on
    meta are drawn altogether. An error above ``TOLERANCE`` means that the map is wrong for that axis.

    logits_alone: as for ``capture``.
    """
    try:
        return _errors(model, args, kwargs or {}, axes, logits_alone, seed, torch.float64)
    except RuntimeError:  # operations that exist in float32 only, or mix it in
        return _errors(model, args, kwargs or {}, axes, logits_alone, seed, torch.float32)


def _errors(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    axes: AxisMap,
    logits_alone: bool,
    seed: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    probe = in_dtype(randomised(model, generator), dtype).eval()
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: cast(t, dtype), (args, dict(kwargs)))
    calibrate(probe, args, kwargs)
    reference = outputs_of(probe, args, kwargs, logits_alone=logits_alone)
    tensors = named_tensors(probe)
    errors = {}
    for name, info in axes.axes.items():
        order = _permutation(info.size, generator)
        with _permuted(tensors, axes, name, order):
            errors[name] = difference(outputs_of(probe, args, kwargs, logits_alone=logits_alone), reference)
    return errors


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its floating point tensors in another type; complex ones stay as they are."""
    return model.double() if dtype is torch.float64 else model.float()


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose values are all different: constant tensors and vectors get noise."""
    probe = _materialised(model, generator)
    buffers = {id(b) for m in probe.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)}
    with torch.no_grad():
        for tensor in named_tensors(probe).values():
            own = isinstance(tensor, nn.Parameter) or id(tensor) in buffers
            if not own or not tensor.is_floating_point():
                continue
            if tensor.ndim < 2 or (tensor.numel() > 1 and tensor.std() == 0):
                tensor += _normal(tensor.shape, generator).to(tensor) * 0.2
    return probe


def _materialised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise UserError(
                f"expected buffers with values, got buffer {name} on meta; build it on a real device"
            )
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if parameter.is_meta:
            fan_in = max(1, parameter.numel() // max(1, parameter.shape[0])) if parameter.ndim > 1 else 1
            drawn = _normal(parameter.shape, generator) / fan_in**0.5
            memo[id(parameter)] = nn.Parameter(drawn.to(parameter.dtype), parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def calibrate(probe: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Give batch norms the statistics of the inputs: with arbitrary ones signals die in deep models, and with
    them the sight of mistakes. In eval mode the statistics then count, so a forgotten buffer shows."""
    norms = [m for m in probe.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        with torch.no_grad():
            probe(*args, **kwargs)
    except ValueError:  # one value per channel: no statistics to be had
        pass
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def outputs_of(
    probe: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, logits_alone: bool
) -> list[torch.Tensor]:
    """What reaches the loss, in float64. A model that draws draws the same every time, and attention does not
    leave out what is padded, as PyTorch's short cut for evaluation does in some models and not in others."""
    short_cut = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            out = main_output(probe(*args, **kwargs), logits_alone=logits_alone)
    finally:
        torch.backends.mha.set_fastpath_enabled(short_cut)
    tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return [t.double() for t in real if t.is_floating_point()]


def _permutation(size: int, generator: torch.Generator) -> torch.Tensor:
    """A permutation of ``size`` units other than the identity."""
    order = torch.randperm(size, generator=generator)
    return order.roll(1) if torch.equal(order, torch.arange(size)) else order


@contextmanager
def _permuted(
    tensors: Mapping[str, torch.Tensor], axes: AxisMap, axis: str, order: torch.Tensor
) -> Iterator[None]:
    """The tensors with the units of one axis in another order, for as long as the context lasts."""
    touched = [name for name, dims in axes.tensors.items() if any(axis in axes_of(dim) for dim in dims)]
    saved = {name: tensors[name].data for name in touched}
    try:
        for name, tensor in saved.items():
            for i, dim in enumerate(axes.tensors[name]):
                if axis in axes_of(dim):
                    tensor = tensor.index_select(i, places(dim, axis, order).to(tensor.device))
            tensors[name].data = tensor
        yield
    finally:
        for name, tensor in saved.items():
            tensors[name].data = tensor


def places(dim: Dim, axis: str, order: torch.Tensor) -> torch.Tensor:
    """Indices of a dimension when the units of one axis are taken in the given order."""
    match dim:
        case Axis(name=name) if name == axis:
            return order
        case Axis(size=size) | Fixed(size=size):
            return torch.arange(size)
        case Product(factors=parts):
            index = torch.zeros(1, dtype=torch.long)
            for part in parts:
                index = (index[:, None] * part.size + places(part, axis, order)).flatten()
            return index
        case Concat(parts=parts):
            offset, found = 0, []
            for part in parts:
                found.append(places(part, axis, order) + offset)
                offset += part.size
            return torch.cat(found)


def difference(outputs: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    pairs = list(zip(outputs, reference, strict=True))
    scales = [float(expected.abs().max()) + 1e-12 for _, expected in pairs if expected.numel()]
    gaps = [float((out - expected).abs().max()) for out, expected in pairs if expected.numel()]
    return max((gap / scale for gap, scale in zip(gaps, scales, strict=True)), default=0.0)
