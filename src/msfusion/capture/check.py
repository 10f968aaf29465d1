"""The permutation proof: permuting the units of an axis in every tensor must leave the outputs unchanged."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from msfusion.core.axes import Axis, AxisMap, axes_of
from msfusion.core.cut import places_from
from msfusion.errors import UserError

from .graph import first_line, main_output, named_tensors, user_line

TOLERANCE = 1e-4
"""Relative errors of wrong maps start at about 1e-3; right ones stay below 1e-6, in float64 below 1e-12."""

Proved = TypeVar("Proved")

_BatchNorm = nn.modules.batchnorm._BatchNorm


def permutation_errors(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    axes: AxisMap,
    *,
    logits_alone: bool = False,
) -> dict[str, float]:
    """For each axis the relative change of the outputs when its units are permuted: 0 but for rounding.

    Runs a copy of the model with every value that initialisation leaves alike drawn at random, so that no
    mistake hides behind equal units; parameters on meta are drawn altogether. An error above ``TOLERANCE``
    means that the map is wrong for that axis.

    logits_alone: as for ``capture``.
    """
    return in_some_type(lambda dtype: _errors(model, args, kwargs or {}, axes, logits_alone, dtype))


def in_some_type(proof: Callable[[torch.dtype], Proved]) -> Proved:
    """A proof in float64; in float32 where an operation or an assertion of the forward wants that; where the
    forward mixes types in float64 again, with all types that it names taken for that. ``UserError`` where it
    cannot run in any of these ways."""
    in_one: Any = _InOneType()  # type: ignore[no-untyped-call]
    ways = ((torch.float64, nullcontext()), (torch.float32, nullcontext()), (torch.float64, in_one))
    for dtype, context in ways:
        try:
            with context:
                return proof(dtype)
        except UserError:
            raise
        except Exception as error:  # whatever a forward raises
            last = error
    raise UserError(
        "expected a forward that can run in float64 or in float32 for the proof, got at "
        f"{user_line(last)} {type(last).__name__}: {first_line(last)}; let it follow the type of its inputs"
    ) from last


class _InOneType(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Floating point types that a forward names are all float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if named.get("dtype") is not None and named["dtype"].is_floating_point:
            named["dtype"] = torch.float64
        return func(*args, **named)


def _errors(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    axes: AxisMap,
    logits_alone: bool,
    dtype: torch.dtype,
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    probe, (args, kwargs) = _probe(model, args, kwargs, generator, dtype)
    reference = outputs_of(probe, args, kwargs, logits_alone=logits_alone)
    tensors = named_tensors(probe)
    errors = {}
    for name, info in axes.axes.items():
        order = _permutation(info.size, generator)
        with _permuted(tensors, axes, name, order):
            errors[name] = difference(outputs_of(probe, args, kwargs, logits_alone=logits_alone), reference)
    return errors


def draws(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, logits_alone: bool = False
) -> bool:
    """Whether the outputs depend on random numbers, in eval mode: noise that does not move with the units."""

    def differ(dtype: torch.dtype) -> bool:
        probe, (given, named) = _probe(model, args, kwargs, torch.Generator().manual_seed(0), dtype)
        first, second = (
            outputs_of(probe, given, named, logits_alone=logits_alone, drawn=drawn) for drawn in (0, 1)
        )
        return difference(first, second) > 0

    return in_some_type(differ)


def _probe(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    generator: torch.Generator,
    dtype: torch.dtype,
) -> tuple[nn.Module, tuple[Any, Any]]:
    """The model to run, and its inputs."""
    probe = in_dtype(randomised(model, generator), dtype).eval()
    inputs = pytree.tree_map_only(torch.Tensor, lambda t: cast(t, dtype), (args, dict(kwargs)))
    calibrate(probe, *inputs)
    return probe, inputs


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
    probe: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    logits_alone: bool,
    drawn: int = 0,
) -> list[torch.Tensor]:
    """What reaches the loss, in float64. A model that draws draws the same every time, and attention does not
    leave out what is padded, as PyTorch's short cut for evaluation does in some models and not in others.

    drawn: seeds what is drawn.
    """
    short_cut = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.default_generator.manual_seed(drawn)
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

    def unit_from(own: Axis) -> torch.Tensor:
        return order if own.name == axis else torch.arange(own.size)

    touched = [name for name, dims in axes.tensors.items() if any(axis in axes_of(dim) for dim in dims)]
    saved = {name: tensors[name].data for name in touched}
    try:
        for name, tensor in saved.items():
            for i, dim in enumerate(axes.tensors[name]):
                if axis in axes_of(dim):
                    tensor = tensor.index_select(i, places_from(dim, unit_from).to(tensor.device))
            tensors[name].data = tensor
        yield
    finally:
        for name, tensor in saved.items():
            tensors[name].data = tensor


def difference(outputs: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """The largest relative change; 1 where the outputs do not have the shapes of the reference."""
    if [out.shape for out in outputs] != [expected.shape for expected in reference]:
        return 1.0
    pairs = list(zip(outputs, reference, strict=True))
    scales = [float(expected.abs().max()) + 1e-12 for _, expected in pairs if expected.numel()]
    gaps = [float((out - expected).abs().max()) for out, expected in pairs if expected.numel()]
    return max((gap / scale for gap, scale in zip(gaps, scales, strict=True)), default=0.0)
