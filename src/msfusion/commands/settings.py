"""``msfusion settings``: every setting and every option of a shipped model, as docs/settings.md has them."""

import dataclasses
import inspect
import io
import json as json_format
import re
import tokenize
from collections.abc import Iterator, Sequence
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from rich.text import Text

from msfusion.commands.output import emit
from msfusion.config import Config
from msfusion.models import MODELS
from msfusion.settings import bounds

_UNITS = {
    "memory": "bytes",
    "flops": "FLOP",
    "rounds": "rounds",
    "evaluate_every": "rounds",
    "checkpoint_every": "rounds",
    "threads": "threads",
    "workers": "processes",
    "participants": "participants",
    "train.batch": "examples",
    "train.steps": "steps",
    "contrast.every": "steps",
    "data.classes_per_participant": "classes",
    "data.min_examples": "examples",
    "data.limit": "examples",
    "data.test_limit": "examples",
    "data.image": "pixels",
    "data.block": "tokens",
    "data.vocabulary": "tokens",
}
"""What a setting counts; all others are names, switches and plain numbers."""

_OPTIONS = {
    "classes": "outputs; the data decide it",
    "channels": "of the images; the data decide it",
    "image": "side of the images in pixels; the data decide it",
    "inputs": "numbers per example; the data decide it",
    "vocabulary": "kinds of tokens; the data decide it",
    "block": "longest sequence in tokens; `data.block` decides it",
    "width": "channels of the first convolutions",
    "depth": "convolution blocks, each with twice the channels of the one before",
    "hidden": "units of the hidden layer or layers",
    "blocks": "residual blocks per stage",
    "norm": "batch norm, or group norm",
    "patch": "side of a patch in pixels; it divides the side of the images",
    "layers": "transformer blocks",
    "heads": "attention heads; they divide `embed`",
    "embed": "units of the residual stream",
    "dropout": "share of the units that dropout silences in training",
    "tie": "one table for the tokens and the head",
}
"""Meaning of the options of the shipped models."""

_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "none"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One setting, in words."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str


def run(*, json: bool) -> None:
    """Print all settings as tables of Markdown, or as one object."""
    entries, options = list(settings(Config)), {name: list(options_of(name)) for name in MODELS}
    data = {
        "settings": [dataclasses.asdict(entry) for entry in entries],
        "models": {name: [dataclasses.asdict(entry) for entry in own] for name, own in options.items()},
    }
    emit(data, Text(_page(entries, options)), json=json)


def settings(owner: type, prefix: str = "") -> Iterator[Entry]:
    """Every setting of a dataclass, those of nested ones under dotted names."""
    hints, meanings = get_type_hints(owner, include_extras=True), meanings_of(owner)
    for field in dataclasses.fields(owner):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            yield from settings(hint, f"{name}.")  # type: ignore[arg-type]
            continue
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        unit = _UNITS.get(name, "")
        yield Entry(name, kind(hint), _value(default), unit, _plain(meanings[field.name], unit))


def _plain(meaning: str, unit: str) -> str:
    """A comment as a cell of a table: without its unit, which has a column, and not as a sentence."""
    text = meaning.replace("``", "`").removesuffix(".")
    return (text[:1].lower() + text[1:]).removeprefix(f"{unit}; ").removeprefix(f"{unit}: ")


def options_of(model: str) -> Iterator[Entry]:
    """Every option of a shipped model."""
    hints = get_type_hints(MODELS[model], include_extras=True)
    parameters: Sequence[Parameter] = list(signature(MODELS[model]).parameters.values())
    for one in parameters:
        yield Entry(one.name, kind(hints[one.name]), _value(one.default), "", _OPTIONS[one.name])


def meanings_of(owner: type) -> dict[str, str]:
    """Field -> the comment behind it, else the comment above it, else its line in the docstring."""
    found: dict[str, str] = {}
    for one in reversed(owner.__mro__):
        if dataclasses.is_dataclass(one):
            found |= dict(re.findall(r"^(\w+): (.*)$", inspect.getdoc(one) or "", re.MULTILINE))
            found |= _comments(inspect.getsource(one))
    return found


def _comments(source: str) -> dict[str, str]:
    """Field -> comment, from the source of a class."""
    lines = source.splitlines()
    comments = {
        token.start[0]: (token.string.lstrip("# "), lines[token.start[0] - 1].lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found, above = {}, []
    for number, line in enumerate(lines, start=1):
        text, alone = comments.get(number, ("", False))
        if alone:
            above.append(text)
            continue
        if (field := re.match(r" {4}(\w+): ", line)) and (said := text or " ".join(above)):
            found[field[1]] = said
        above = []
    return found


def kind(hint: Any) -> str:
    """A type in words, with its bounds."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{kind(parts[0])} {bounds(hint)}".strip()
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        lists = [part for part in parts if get_origin(part) in (list, tuple)]
        single = [part for part in parts if part not in (*lists, NoneType)]
        several = ", or a list of such" if lists else ""
        return " or ".join(map(kind, single)) + several + (", or none" if NoneType in parts else "")
    if origin in (list, tuple):
        return f"list: {kind(parts[0])}"
    return "table" if origin is dict else _WORDS[hint]


def _value(value: object) -> str:
    return "none" if value is None else f"`{json_format.dumps(value)}`"


def _page(entries: Sequence[Entry], options: dict[str, list[Entry]]) -> str:
    tables: dict[str, list[Entry]] = {}
    for entry in entries:
        tables.setdefault(entry.name.rpartition(".")[0], []).append(entry)
    parts = ["## Settings\n", *_table("setting", tables.pop(""))]
    for name, own in tables.items():
        parts += [f"\n### `[{name}]`\n", *_table("setting", own)]
    parts.append("\n## Options of the shipped models\n")
    parts.append("In a run `model.options`, for `plan` and `axes` `--option`.")
    for name, own in options.items():
        about = " ".join((inspect.getdoc(MODELS[name]) or "").replace("``", "`").split())
        parts += [f"\n### `{name}`\n", f"{about}\n", *_table("option", own)]
    return "\n".join(parts)


def _table(first: str, entries: Sequence[Entry]) -> list[str]:
    """A table of Markdown, without the column of units where there are none."""
    columns = [first, "type", "default", *(["unit"] if any(e.unit for e in entries) else []), "meaning"]
    rows = [[f"`{e.name}`", e.type, e.default, e.unit, e.meaning] for e in entries]
    if "unit" not in columns:
        rows = [row[:3] + row[4:] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows]]
