"""What the flags of a command say, as settings."""

from typing import Any


def settings(*parts: Any) -> dict[str, Any]:
    """Flags that were given, and ``--set`` over them."""
    *tables, assignments = parts
    return {**flags(*tables), **pairs(assignments)}


def flags(*tables: dict[str, Any]) -> dict[str, Any]:
    """Flags that are not left out; what a participant can afford may be several values with commas."""
    from msfusion.runtimes.run import CAPACITIES

    given = {key: value for table in tables for key, value in table.items() if value is not None}
    return {k: _values(v) if k in CAPACITIES else v for k, v in given.items()}


def _values(text: str) -> Any:
    from msfusion.config import parse_value

    values = tuple(parse_value(part.strip()) for part in text.split(","))
    return values if len(values) > 1 else values[0]


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def pairs(assignments: list[str] | None) -> dict[str, Any]:
    from msfusion.config import parse_setting

    return dict(map(parse_setting, assignments or []))
