"""The bounds of the configuration, as the validator that reads it sees them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from msfusion.data import Data

ADAPTER = TypeAdapter(Data)


def test_defaults_are_valid() -> None:
    assert ADAPTER.validate_python({}) == Data()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "mnist"},
        {"partition": "random"},
        {"alpha": 0},
        {"min_examples": -1},
        {"limit": 0},
        {"block": 0},
        {"vocabulary": 256},
        {"test_share": 1},
        {"tokenizer": "word"},
    ],
)
def test_bounds(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)
