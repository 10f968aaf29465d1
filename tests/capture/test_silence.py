"""The second proof over the zoo: defined where nothing mixes the units, right there, and not blind."""

import pytest
from laws import captured, model_of
from vision_zoo import VISION_ROWS
from zoo import ROWS, Row

from msfusion.capture import TOLERANCE
from msfusion.capture.silence import mixed_axes, silence_errors

PARAMETRISED = [
    pytest.param(row, id=row.name, marks=pytest.mark.slow if row.slow else ())
    for row in [*ROWS, *VISION_ROWS]
]


@pytest.mark.parametrize("row", PARAMETRISED)
def test_right_maps_pass(row: Row) -> None:
    found = captured(row)
    mixed = mixed_axes(found._source.derived)
    assert set(row.normed) & set(found.axes.cuttable) <= mixed
    errors = silence_errors(model_of(row), found)
    assert all(error <= TOLERANCE for error in errors.values())
    assert errors.keys() == set(found.axes.cuttable) - mixed
