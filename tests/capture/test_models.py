"""Laws that hold for every model of the zoo."""

from typing import Any

import pytest
import torch
from laws import (
    assert_equals_on,
    assert_equals_silenced,
    assert_equals_twins,
    assert_runs_elsewhere,
    assert_trains,
    captured,
    filled,
    halved,
    model_of,
    run,
    scaled_in_more_than_one_way,
)
from torch import nn
from vision_zoo import VISION_ROWS
from zoo import ROWS, Row

from msfusion.capture import capture, permutation_errors
from msfusion.capture.graph import copy_with, named_tensors
from msfusion.capture.silence import mixed_axes
from msfusion.core.axes import axes_of

ALL_ROWS = [*ROWS, *VISION_ROWS]


def param(row: Row, *more: Any, id: str = "") -> Any:
    return pytest.param(row, *more, id=row.name + id, marks=[pytest.mark.slow] if row.slow else [])


parametrised = pytest.mark.parametrize("row", [param(row) for row in ALL_ROWS])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
over_widths = pytest.mark.parametrize(
    ("row", "without"),
    [param(row, (), id=", all axes") for row in ALL_ROWS]
    + [param(row, row.residual, id=", inner axes") for row in ALL_ROWS if row.residual],
)


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
def test_a_model_on_meta_in_train_mode_at_another_batch_size_has_the_same_map(row: Row) -> None:
    """One capture for all three, as it takes most of the time."""
    tensors = named_tensors(model_of(row)).values()
    model = copy_with(model_of(row), {id(t): torch.empty_like(t, device="meta") for t in tensors}).train()
    axes = capture(model, *row.inputs(3)).axes
    assert axes.to_json() == captured(row).axes.to_json()


@over_widths
def test_a_narrow_model_has_the_shapes_of_the_map(row: Row, without: tuple[str, ...]) -> None:
    axes, full = captured(row).axes, model_of(row)
    widths = halved(row, without=without)
    narrow = captured(row).narrow(widths)
    assert list(narrow.state_dict()) == list(full.state_dict())
    for name, tensor in named_tensors(narrow).items():
        assert tuple(tensor.shape) == axes.shape(name, widths)
        cut = any(axis in widths for dim in axes.tensors[name] for axis in axes_of(dim))
        assert tensor.is_meta == (cut or isinstance(tensor, nn.Parameter))


@over_widths
def test_a_narrow_model_trains_at_another_batch_size_and_on_another_device(
    row: Row, without: tuple[str, ...]
) -> None:
    widths = halved(row, without=without)
    assert_trains(row, widths)
    assert_runs_elsewhere(row, widths)


@needs_gpu
@over_widths
def test_a_narrow_model_is_the_same_on_a_gpu(row: Row, without: tuple[str, ...]) -> None:
    widths = halved(row, without=without)
    assert_equals_on(row, widths, torch.device("cuda"))


@parametrised
def test_a_narrow_model_is_the_full_one_with_the_other_units_silenced(row: Row) -> None:
    assert_equals_silenced(row)
    assert set(row.normed) & set(captured(row).axes.cuttable) <= mixed_axes(captured(row).source.derived)


@parametrised
def test_a_window_over_twins_is_the_full_model(row: Row) -> None:
    for without in sorted({(), row.residual}):
        assert_equals_twins(row, without)
    if scaled_in_more_than_one_way(row):
        assert_equals_twins(row, (), unequal=True)


def test_whole_widths_give_the_full_model_back() -> None:
    row = next(row for row in ROWS if row.name == "nanogpt")
    inputs = row.inputs(2)
    assert torch.equal(run(filled(row, {}).eval(), inputs), run(model_of(row).eval(), inputs))
