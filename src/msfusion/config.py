"""Configuration: frozen dataclasses beside their owners, filled from a TOML file and from flags over it."""

import copy
import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from annotated_types import Ge

from msfusion.data import Data
from msfusion.errors import UserError
from msfusion.models import MODELS
from msfusion.peers.settings import Peers
from msfusion.runtimes.run import CAPACITIES, Run
from msfusion.settings import validated

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """Which model to train.

    name: a shipped model, ``path/to/file.py:function``, ``hf:PATH`` or ``timm:NAME``.
    options: keyword arguments of its builder.
    axes: dims declared by hand, pattern over parameter names -> a dim per dimension.
    """

    name: str = "cnn"
    options: dict[str, int | float | str | bool | list[int]] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Config(Run):
    """The settings of a preset: everything that a simulation, or what peers train, is a function of."""

    participants: Annotated[int, Ge(1)] = 10  # how many, among whom the data are divided
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    peers: Peers = field(default_factory=Peers)  # among peers only


def load(source: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a preset's name or a TOML file, with dotted ``overrides`` (``{"train.lr": 0.1}``) over it.

    A preset's ``twins`` are for models that begin with random values, so not for one from elsewhere.
    """
    table, flags = read_table(source), overrides or {}
    if any(name in flags for name in CAPACITIES):
        table = {key: value for key, value in table.items() if key not in CAPACITIES}
    config = filled(Config, flags, table)
    elsewhere = source in presets() and config.model.name not in MODELS
    return dataclasses.replace(config, twins=None) if elsewhere and "twins" not in flags else config


def filled(owner: type[T], settings: Mapping[str, Any], table: Mapping[str, Any] = MappingProxyType({})) -> T:
    """An ``owner`` made from dotted ``settings`` over a table of settings; UserError for an unknown one."""
    filled_in = copy.deepcopy(dict(table))
    for key, value in settings.items():
        _put(filled_in, key.split("."), value)
    _refuse_unknown(owner, filled_in, owner, "")
    return validated(owner, _with_none(owner, filled_in))


def _with_none(owner: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The word ``none`` as no value, where a setting may have none: TOML has no word for it."""
    hints = get_type_hints(owner)
    filled_in = dict(table)
    for key, value in table.items():
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            filled_in[key] = _with_none(hints[key], value)
        elif value == "none" and type(None) in get_args(hints[key]):
            filled_in[key] = None
    return filled_in


def load_axes(file: Path | None) -> dict[str, list[str]]:
    """The table ``[model.axes]`` of a TOML file, or all of one without ``[model]``; empty for None.

    UserError for a file that declares no axes."""
    if file is None:
        return {}
    table = read_table(str(file))
    own = table["model"] if isinstance(table.get("model"), dict) else {"axes": table}
    if not own.get("axes"):
        raise UserError(f"expected a table [model.axes] in {file}, found none; declare axes in it")
    return validated(_Declared, {"model": {"axes": own["axes"]}}).model.axes


@dataclass(frozen=True)
class _Declared:
    """A file with declared axes."""

    model: Model


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("msfusion") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value`` where the value is written as in TOML; a bare word is a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"expected a setting as key=value, got {text!r}")
    return key.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """A value as in TOML; what is none there is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_table(source: str) -> dict[str, Any]:
    """The settings that a preset or a TOML file states; UserError where there is no such."""
    try:
        if source in presets():
            return tomllib.loads((resources.files("msfusion") / "presets" / f"{source}.toml").read_text())
        return tomllib.loads(Path(source).read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"expected a preset ({', '.join(presets())}) or a TOML file, got {source!r}, which is neither"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"expected {source} to be a TOML file, but it cannot be read: {error}") from None


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
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _refuse_unknown(hints[key], value, root, f"{prefix}{key}.")


def _nearest(root: type, key: str) -> str:
    known = list(_keys(root, ""))
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1, cutoff=0.0)
    return close[0] if close else by_leaf[leaf[0]]


def _keys(owner: type, prefix: str) -> Iterable[str]:
    for key, hint in get_type_hints(owner).items():
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            yield prefix + key
