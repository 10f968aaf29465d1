"""Checks settings against the types and bounds that their dataclass states beside each field."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from msfusion.errors import UserError

T = TypeVar("T")


def validated(owner: type[T], table: Mapping[str, Any]) -> T:
    """An ``owner`` made from ``table``; UserError names the first setting that is out of its range."""
    try:
        return TypeAdapter(owner).validate_python(table)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part.islower())
    what = first["msg"][0].lower() + first["msg"][1:]
    return f"setting {where}: {what.replace('input should be', 'expected a value')}, got {first['input']!r}"
