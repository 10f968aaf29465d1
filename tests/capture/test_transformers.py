"""The laws over models of transformers."""

from contextlib import nullcontext

import pytest
import torch
from hf_zoo import HF_ROWS
from laws import (
    assert_equals_on,
    assert_equals_silenced,
    assert_equals_twins,
    assert_runs_elsewhere,
    assert_trains,
    captured,
    halved,
    model_of,
    scaled_in_more_than_one_way,
)
from torch._export.utils import _compiling_state_context
from zoo import Row

from msfusion.capture import permutation_errors
from msfusion.capture.graph import named_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # transformers warns about itself
]
parametrised = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in HF_ROWS])


@parametrised
def test_the_map_is_right(row: Row) -> None:
    axes = captured(row).axes
    assert tuple(name for name, info in axes.axes.items() if info.residual) == row.residual
    assert len(axes.cuttable) == row.cuttable
    assert set(axes.tensors) == set(named_tensors(model_of(row)))
    torch.manual_seed(1)
    errors = permutation_errors(model_of(row), *row.inputs(2), axes, logits_alone=True)
    assert max(errors.values()) < row.tolerance


@parametrised
def test_narrow_models_train_here_and_on_another_device(row: Row) -> None:
    modes = (False,) if row.name.startswith("Wav2Vec2") else (True, False)  # it leaves layers out by chance
    for without in sorted({(), row.residual}):
        assert_trains(row, halved(row, without=without))
    # Without values PyTorch's grouped products (Mixtral) take bfloat16 only; compiled code has others.
    with _compiling_state_context() if row.name.startswith("Mixtral") else nullcontext():
        assert_runs_elsewhere(row, halved(row), modes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
@parametrised
def test_narrow_models_are_the_same_on_a_gpu(row: Row) -> None:
    for without in sorted({(), row.residual}):
        assert_equals_on(row, halved(row, without=without), torch.device("cuda"))


@parametrised
def test_a_narrow_model_is_the_full_one_with_the_other_units_silenced(row: Row) -> None:
    assert_equals_silenced(row)


@parametrised
def test_a_window_over_twins_is_the_full_model(row: Row) -> None:
    for without in sorted({(), row.residual}):
        assert_equals_twins(row, without)
    if scaled_in_more_than_one_way(row):
        assert_equals_twins(row, (), unequal=True)
