"""What the flags of a command say, as settings."""

from collections.abc import Mapping
from typing import Any

from msfusion.errors import UserError


def settings(*parts: Any) -> dict[str, Any]:
    """Flags that were given, and ``--set``; UserError where both say the same setting."""
    *tables, assignments = parts
    return together(flags(*tables), pairs(assignments))


def together(by_option: Mapping[str, Any], by_set: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by options of their own and those by ``--set``; UserError for one that is in both."""
    for key, value in by_option.items():
        table, _, leaf = key.rpartition(".")
        whole = by_set.get(table)
        if key in by_set or (isinstance(whole, Mapping) and leaf in whole):
            other = by_set[key] if key in by_set else by_set[table][leaf]
            raise UserError(
                f"expected {key} once, got {value!r} by its own option and {other!r} by --set: leave one out"
            )
    return {**by_option, **by_set}


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
