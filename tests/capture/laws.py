"""What the laws over models are made of."""

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from zoo import Inputs, Row

from msfusion.capture import Capture, capture
from msfusion.capture.check import in_dtype
from msfusion.capture.graph import copy_with, main_output, named_tensors
from msfusion.capture.graph_module import runs_graph
from msfusion.capture.narrow import Source
from msfusion.capture.silence import errors_of, mixed_axes
from msfusion.core.axes import Units, count, counted
from msfusion.core.merge import extract, take
from msfusion.core.twins import Twins
from msfusion.learn.submodels import SubModels, materialised

ELSEWHERE = torch.device("lazy", 0)
"""Beside the CPU and meta the one device for which a build of PyTorch without GPUs records gradients."""


BATCH_NORM_IN_A_GRAPH = {"padded resnet"}
"""Models with batch norm whose own forward does not follow unequal widths."""


@cache
def model_of(row: Row) -> nn.Module:
    torch.manual_seed(0)
    return row.model()


class Remembering(Capture):
    """Makes the module of given widths once; most of the time of these tests would go there."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._made: dict[tuple[object, ...], nn.Module] = {}

    def narrow(self, widths: Mapping[str, int], *, scaled: bool = False) -> nn.Module:
        key = scaled, *sorted(widths.items())
        if key not in self._made:
            self._made[key] = super().narrow(widths, scaled=scaled)
        return copy.deepcopy(self._made[key])


@cache
def captured(row: Row) -> Capture:
    args, kwargs = row.inputs(2)
    return Remembering(capture(model_of(row), args, kwargs, logits_alone=True).source)


def halved(row: Row, *, without: Collection[str] = ()) -> dict[str, int]:
    """Half the units of every axis that may be cut."""
    axes = captured(row).axes
    names = [name for name in axes.cuttable if name not in without]
    return {name: max(1, axes.axes[name].size // 2) for name in names}


def run(model: nn.Module, inputs: Inputs) -> Tensor:
    out = main_output(model(*inputs[0], **inputs[1]), logits_alone=True)
    first: Any = out if isinstance(out, Tensor) else next(iter(out.values()))
    assert isinstance(first, Tensor)
    return first


def last_units(row: Row, widths: dict[str, int]) -> dict[str, Units]:
    sizes = {name: info.size for name, info in captured(row).axes.axes.items()}
    return {name: ((sizes[name] - width, sizes[name]),) for name, width in widths.items()}


def filled(row: Row, selection: dict[str, Units]) -> nn.Module:
    """The narrow model with the values that the full one has at the selected units."""
    axes, full = captured(row).axes, named_tensors(model_of(row))
    module = captured(row).narrow({name: count(units) for name, units in selection.items()})
    values = {
        id(tensor): take(full[name], axes.tensors[name], selection).detach()
        for name, tensor in named_tensors(module).items()
    }
    return copy_with(module, values)


def assert_trains(row: Row, widths: dict[str, int]) -> None:
    """The narrow model runs forward and backward in both modes at another batch size."""
    narrow = filled(row, last_units(row, widths))
    for train in (True, False):
        narrow.train(train)
        narrow.zero_grad()
        run(narrow, row.inputs(3)).square().mean().backward()
        gradients = [p.grad for p in narrow.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)


def assert_runs_elsewhere(row: Row, widths: dict[str, int], modes: Sequence[bool] = (True, False)) -> None:
    """The narrow model runs forward and backward in both modes on a device that is not the CPU. Tensors have
    shapes there and no values, and PyTorch raises where one of the CPU would meet them."""
    narrow = captured(row).narrow(widths)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = materialised(narrow, ELSEWHERE)
        for train in modes:
            module.train(train).zero_grad()
            out = run(module, moved(row.inputs(3), ELSEWHERE))
            out.square().mean().backward()
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            assert gradients
            assert {t.device for t in (out, *gradients, *module.buffers())} == {ELSEWHERE}


def assert_equals_on(row: Row, widths: dict[str, int], device: torch.device) -> None:
    """The narrow model gives on the device what it gives on the CPU, and trains there."""
    dtype = _proved_in(row)
    module = in_dtype(filled(row, last_units(row, widths)), dtype).eval()
    inputs = moved(row.inputs(3), torch.device("cpu"), dtype)
    expected = run(module, inputs)
    found = run(module.to(device), moved(inputs, device))
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3 * scale)
    run(module.train(), moved(inputs, device)).square().mean().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() and g.device.type == device.type for g in gradients)


def assert_equals_silenced(row: Row) -> None:
    """The narrow model computes what the full one does with the other units silenced, over all axes along
    which nothing else mixes units, as the row says or as the second proof takes it."""
    found = captured(row)
    mixed = mixed_axes(found.source.derived) & set(row.normed)
    errors = errors_of(model_of(row), found, [name for name in found.axes.cuttable if name not in mixed])
    assert errors.keys() == set(found.axes.cuttable) - mixed
    assert max(errors.values(), default=0) < row.tolerance


def moved(inputs: Inputs, device: torch.device, dtype: torch.dtype | None = None) -> Inputs:
    """The inputs on a device, those that are no numbers of tokens in another type."""

    def move(x: Tensor) -> Tensor:
        return x.to(device, dtype if x.is_floating_point() else None)

    found: Inputs = pytree.tree_map_only(Tensor, move, inputs)
    return found


def _proved_in(row: Row) -> torch.dtype:
    return torch.float64 if row.tolerance < 1e-6 else torch.float32


def assert_equals_twins(row: Row, without: Collection[str], *, unequal: bool = False) -> None:
    """Where the units of a model are copies of one another, a window with one of each is the full model under
    the scale rule, as core/twins.py promises.

    unequal: axes at halves and at quarters in turn.
    """
    axes = captured(row).axes
    parts = {axis: 2 + 2 * (unequal and i % 2) for i, axis in enumerate(halved(row, without=without))}
    sizes = {axis: axes.axes[axis].size for axis in parts}
    widths = {axis: sizes[axis] // part for axis, part in parts.items() if sizes[axis] % part == 0}
    full = copy.deepcopy(model_of(row))
    values = {name: tensor.detach() for name, tensor in named_tensors(full).items()}
    Twins(axes, widths, 1.0).start_(values, power=1.0)
    windows = last_units(row, widths)
    submodels = SubModels(captured(row), row.inputs(2)[0], torch.device("cpu"), 1.0)
    narrow = submodels.load(windows, extract(values, axes, windows))
    if runs_graph(narrow) and has_batch_norm(full):
        # A graph has the statistics of the batch in train mode alone, beside dropout.
        assert row.name in BATCH_NORM_IN_A_GRAPH
        return
    dtype = _proved_in(row)
    inputs = moved(row.inputs(3), torch.device("cpu"), dtype)
    expected, found = (run(_with_statistics_of_the_batch(in_dtype(m, dtype)), inputs) for m in (full, narrow))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.detach().abs().max()))


def scaled_in_more_than_one_way(row: Row) -> bool:
    """Whether products take up the scale rule themselves, or parts side by side have factors of their own."""
    source = captured(row).source
    parts = (dim for dims in source.axes.summed.values() for dim in dims.values())
    return bool(source.derived.owed) or any(counted(dim) is None for dim in parts)


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


def _with_statistics_of_the_batch(module: nn.Module) -> nn.Module:
    """Without dropout; batch norm as in training, and with all of the size taken away."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.training, part.eps = True, 1e-30
    return module
