"""The laws over timm's own code, where timm is installed (``pip install --no-deps timm``; torchvision is not
needed):  pytest -m slow tests/capture/test_timm.py"""

import pytest
import torch
from laws import (
    assert_equals_silenced,
    assert_runs_elsewhere,
    assert_trains,
    captured,
    halved,
    model_of,
)
from timm_zoo import TIMM_ROWS, timm
from zoo import Row

from msfusion.capture import permutation_errors

pytestmark = pytest.mark.slow


@pytest.fixture(params=[pytest.param(row, id=row.name) for row in TIMM_ROWS])
def row(request: pytest.FixtureRequest) -> Row:
    timm()
    found: Row = request.param
    return found


@pytest.mark.filterwarnings("ignore")  # timm warns about itself
def test_timm(row: Row) -> None:
    """The map is right, and narrow models train, here and elsewhere, and are the full one silenced."""
    axes = captured(row).axes
    assert len(axes.cuttable) == row.cuttable
    assert tuple(name for name, info in axes.axes.items() if info.residual) == row.residual
    assert not axes.unknown
    torch.manual_seed(1)
    errors = permutation_errors(model_of(row), *row.inputs(2), axes, logits_alone=True)
    assert max(errors.values()) < row.tolerance
    for widths in (halved(row), halved(row, without=row.residual)):
        assert_trains(row, widths)
        assert_runs_elsewhere(row, widths)
    assert_equals_silenced(row)
