"""Laws that hold for every model of the zoo."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from zoo import ROWS, Row

from msfusion.capture import Capture, capture, permutation_errors
from msfusion.capture.graph import copy_with, named_tensors
from msfusion.core.axes import Dim, Units, axes_of, count, positions
from msfusion.core.merge import take

parametrised = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in ROWS]
)


@cache
def model_of(row: Row) -> nn.Module:
    torch.manual_seed(0)
    return row.model()


@cache
def captured(row: Row) -> Capture:
    args, kwargs = row.inputs(2)
    return capture(model_of(row), args, kwargs)


def halved(row: Row, *, inner_only: bool = False) -> dict[str, int]:
    axes = captured(row).axes
    names = [n for n in axes.cuttable if not (inner_only and axes.axes[n].residual)]
    return {name: max(1, axes.axes[name].size // 2) for name in names}


def run(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    out = model(*inputs[0], **inputs[1])
    assert isinstance(out, torch.Tensor)
    return out


@parametrised
def test_axes_are_those_expected(row: Row) -> None:
    axes = captured(row).axes
    assert len(axes.cuttable) == row.cuttable
    assert tuple(name for name, info in axes.axes.items() if info.residual) == row.residual
    assert not axes.unknown


@parametrised
def test_every_tensor_has_its_shape(row: Row) -> None:
    axes, model = captured(row).axes, model_of(row)
    assert set(axes.tensors) == set(named_tensors(model))
    assert set(axes.tensors) | set(axes.ties) >= set(model.state_dict())
    for name, tensor in named_tensors(model).items():
        assert axes.shape(name, {}) == tuple(tensor.shape)


@parametrised
def test_permuting_an_axis_changes_nothing(row: Row) -> None:
    torch.manual_seed(1)
    errors = permutation_errors(model_of(row), *row.inputs(2), captured(row).axes)
    assert errors.keys() == captured(row).axes.axes.keys()
    assert max(errors.values()) < row.tolerance


@parametrised
def test_a_model_on_meta_has_the_same_map(row: Row) -> None:
    tensors = named_tensors(model_of(row)).values()
    model = copy_with(model_of(row), {id(t): torch.empty_like(t, device="meta") for t in tensors})
    axes = capture(model, *row.inputs(2)).axes
    assert axes.to_json() == captured(row).axes.to_json()


@parametrised
def test_train_mode_and_another_batch_give_the_same_map(row: Row) -> None:
    model = copy.deepcopy(model_of(row)).train()
    assert capture(model, *row.inputs(3)).axes.to_json() == captured(row).axes.to_json()


@parametrised
@pytest.mark.parametrize("inner_only", [False, True], ids=["all axes", "inner axes"])
def test_a_narrow_model_has_the_shapes_of_the_map(row: Row, inner_only: bool) -> None:
    widths, axes = halved(row, inner_only=inner_only), captured(row).axes
    narrow, full = captured(row).narrow(widths), model_of(row)
    assert list(narrow.state_dict()) == list(full.state_dict())
    for name, tensor in named_tensors(narrow).items():
        assert tuple(tensor.shape) == axes.shape(name, widths)
        cut = any(axis in widths for dim in axes.tensors[name] for axis in axes_of(dim))
        assert tensor.is_meta == (cut or isinstance(tensor, nn.Parameter))


@parametrised
@pytest.mark.parametrize("inner_only", [False, True], ids=["all axes", "inner axes"])
def test_a_narrow_model_trains_at_another_batch_size(row: Row, inner_only: bool) -> None:
    narrow = filled(row, last_units(halved(row, inner_only=inner_only), row))
    for train in (True, False):
        narrow.train(train)
        narrow.zero_grad()
        run(narrow, row.inputs(3)).square().mean().backward()
        gradients = [p.grad for p in narrow.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)


@parametrised
def test_a_narrow_model_is_the_full_one_with_the_other_units_silenced(row: Row) -> None:
    """A unit is silenced by zeroing what each operation that sums over its axis multiplies it with."""
    axes = captured(row).axes
    widths = {name: width for name, width in halved(row).items() if name not in row.normed}
    selection = last_units(widths, row)
    dtype = torch.float64 if row.tolerance < 1e-6 else torch.float32
    narrow, full = filled(row, selection).to(dtype).eval(), copy.deepcopy(model_of(row)).to(dtype).eval()
    tensors = named_tensors(full)
    with torch.no_grad():
        for name, summed in axes.summed.items():
            for axis in summed & selection.keys():
                silence(tensors[name], axes.tensors[name], {axis: selection[axis]})
    args, kwargs = row.inputs(2)
    args = tuple(x.to(dtype) if x.is_floating_point() else x for x in args)
    expected = run(full, (args, kwargs))
    torch.testing.assert_close(run(narrow, (args, kwargs)), expected, rtol=0, atol=10 * row.tolerance)


def test_whole_widths_give_the_full_model_back() -> None:
    row = next(row for row in ROWS if row.name == "nanogpt")
    whole = filled(row, {}).eval()
    torch.manual_seed(3)
    inputs = row.inputs(2)
    assert torch.equal(run(whole, inputs), run(model_of(row).eval(), inputs))


def silence(tensor: torch.Tensor, dims: tuple[Dim, ...], selection: dict[str, Units]) -> None:
    for i, dim in enumerate(dims):
        if set(axes_of(dim)) & selection.keys():
            kept = torch.zeros(tensor.shape[i], dtype=torch.bool)
            for start, stop in positions(dim, selection):
                kept[start:stop] = True
            tensor.index_fill_(i, (~kept).nonzero().flatten(), 0.0)


def last_units(widths: dict[str, int], row: Row) -> dict[str, Units]:
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
