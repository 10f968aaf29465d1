"""Fills dataclasses from dotted settings, and checks these against the types and bounds beside each field."""

import copy
import difflib
import json
import math
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError

from msfusion.errors import UserError

T = TypeVar("T")

_NO_JSON = (
    "input was not a valid JSON value",
    "expected numbers, texts, true, false, and lists or tables of these",
)
"""What pydantic says of a date or a tuple where any value may stand, and what that means."""


def filled(owner: type[T], settings: Mapping[str, Any], table: Mapping[str, Any] = MappingProxyType({})) -> T:
    """An ``owner`` made from dotted ``settings`` over a table of settings; UserError for an unknown one."""
    filled_in = copy.deepcopy(dict(table))
    for key, value in _one_by_one(owner, settings):
        _put(filled_in, key.split("."), value)
    _refuse_unknown(owner, filled_in, owner, "")
    return validated(owner, _with_none(owner, filled_in))


def _one_by_one(owner: type, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A table of settings as the settings in it, which leave others of a file's table as they are."""
    hints = get_type_hints(owner)
    for key, value in settings.items():
        if is_dataclass(hints.get(key)) and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", one) for name, one in value.items())
        else:
            yield key, value


def _with_none(owner: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The word ``none`` as no value, where a setting may have none: TOML has no word for it."""
    hints = get_type_hints(owner)
    filled_in = dict(table)
    for key, value in table.items():
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            filled_in[key] = _with_none(hints[key], value)
        elif value == "none" and type(None) in get_args(hints[key]):
            filled_in[key] = None
    return filled_in


def _put(table: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(
                f"expected {part!r} in {'.'.join(path)!r} to be a table of settings, it is a value"
            )
        table = inner
    table[path[-1]] = value


def _refuse_unknown(owner: type, table: Mapping[str, Any], root: type, prefix: str) -> None:
    hints = get_type_hints(owner)
    for key, value in table.items():
        if key not in hints:
            raise UserError(
                f"expected a known setting, got {prefix + key!r}; "
                f"did you mean {_nearest(root, prefix + key)!r}?"
            )
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            _refuse_unknown(hints[key], value, root, f"{prefix}{key}.")


def _nearest(root: type, key: str) -> str:
    known = list(_keys(root, ""))
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1, cutoff=0.0)
    return close[0] if close else by_leaf[leaf[0]]


def _keys(owner: type, prefix: str) -> Iterator[str]:
    for key, hint in get_type_hints(owner).items():
        if is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            yield prefix + key


def validated(owner: type[T], table: Mapping[str, Any]) -> T:
    """An ``owner`` made from ``table``; UserError names the first setting that is out of its range."""
    _refuse_booleans(owner, table)
    try:
        made = TypeAdapter(owner).validate_python(table)
    except ValidationError as error:
        raise UserError(_sentence(owner, error)) from None
    for name, value in _numbers(made):
        if not math.isfinite(value):
            raise UserError(f"setting {name}: expected a finite number, got {value}")
    for field in fields(made) if is_dataclass(made) else ():
        if getattr(made, field.name) == ():
            raise UserError(f"setting {field.name}: expected at least one value, got an empty list")
    return made


def _refuse_booleans(owner: Any, table: Mapping[str, Any], prefix: str = "") -> None:
    """Raise UserError for true or false as a number, which Python takes for 1 and 0."""
    for key, hint in get_type_hints(owner, include_extras=True).items():
        value = table.get(key)
        if is_dataclass(hint):
            if isinstance(value, Mapping):
                _refuse_booleans(hint, value, f"{prefix}{key}.")
        elif (wrong := boolean_in(value)) and wants_number(hint):
            off = "; none switches it off" if wrong == "false" and type(None) in get_args(hint) else ""
            what = f"expected a number {bounds(hint)}".rstrip()
            raise UserError(f"setting {prefix}{key}: {what}, got {wrong}{off}")


def boolean_in(value: object) -> str | None:
    """The first of true and false among one value or several, as TOML has it."""
    several = value if isinstance(value, list | tuple) else [value]
    return next((str(one).lower() for one in several if isinstance(one, bool)), None)


def wants_number(hint: Any) -> bool:
    """Whether a type has numbers, and neither true nor false."""
    parts = {hint}
    while more := {part for one in parts for part in get_args(one) if isinstance(part, Hashable)} - parts:
        parts |= more
    return bool(parts & {int, float}) and bool not in parts


def _numbers(made: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The settings that are numbers, by their dotted names."""
    for field in fields(made) if is_dataclass(made) else ():
        value = getattr(made, field.name)
        if isinstance(value, float):
            yield prefix + field.name, value
        elif isinstance(value, list | tuple):
            yield from ((prefix + field.name, one) for one in value if isinstance(one, float))
        else:
            yield from _numbers(value, f"{prefix}{field.name}.")


def _sentence(owner: type, error: ValidationError) -> str:
    errors = error.errors()
    several = isinstance(errors[0]["input"], list | tuple)  # of which one is wrong, not that they are several
    first = next((e for e in errors if several and isinstance(e["loc"][-1], int)), errors[0])
    names, hint = _setting(owner, first["loc"])
    limits = bounds(hint)
    if limits and first["type"].startswith(("greater_than", "less_than")):
        what = f"expected a value {limits}"
    else:
        what = first["msg"].replace("\n", " ").replace("Input should be", "expected").replace(*_NO_JSON)
    said = f"setting {'.'.join(names)}: {what}, got {first['input']!r}"
    listed = isinstance(first["input"], str) and "," in first["input"] and _takes_list(hint)
    return f"{said}; a list is written as [{first['input']}]" if listed else said


def _takes_list(hint: Any) -> bool:
    return any(get_origin(part) in (list, tuple) for part in (hint, *get_args(hint)))


def _setting(owner: type, place: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Name and annotation of the setting at a place; what pydantic adds of its own is left out."""
    names: list[str] = []
    hint: Any = owner
    for part in place:
        if not isinstance(part, str):
            break
        if is_dataclass(hint):
            hint = get_type_hints(hint, include_extras=True).get(part)
        elif get_origin(hint) is dict:
            hint = None
        else:
            break
        names.append(part)
    return names, hint


def bounds(hint: Any) -> str:
    """The range of an annotation such as ``Annotated[float, Gt(0), Le(1)] | None``: ``in (0, 1]``."""
    annotated = next((h for h in (hint, *get_args(hint)) if get_origin(h) is Annotated), None)
    low, high = "", ""
    for bound in get_args(annotated)[1:]:
        match bound:
            case Gt(gt=value):
                low = f"({value}"
            case Ge(ge=value):
                low = f"[{value}"
            case Lt(lt=value):
                high = f"{value})"
            case Le(le=value):
                high = f"{value}]"
    if low and high:
        return f"in {low}, {high}"
    words = {"(": "above ", "[": "of at least ", ")": "below ", "]": "of at most "}
    return words[low[0]] + low[1:] if low else words[high[-1]] + high[:-1] if high else ""


def flat(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names: {"train": {"lr": 0.1}} -> {"train.lr": "0.1"}."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return out


def differences(before: Mapping[str, str], now: Mapping[str, str], free: Collection[str] = ()) -> str:
    """What differs between a run's settings and others, both by their dotted names, in words; empty where
    nothing does.

    free: names of settings that may differ.
    """
    keys = sorted((before.keys() | now.keys()) - set(free))
    pairs = {key: (now.get(key), before.get(key)) for key in keys}
    return ", ".join(
        f"{key} = {_said(new)} where the run has {_said(old)}"
        for key, (new, old) in pairs.items()
        if new != old and {new, old} != {None, "{}"}  # of a table that is empty on one side, its keys tell
    )


def _said(value: str | None) -> str:
    return "none" if value in (None, "null") else value
