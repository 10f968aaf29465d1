"""Configuration: frozen dataclasses beside their owners, filled from a TOML file and from flags over it."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import JsonValue

from msfusion.data import Data
from msfusion.errors import UserError
from msfusion.models import MODELS
from msfusion.peers.settings import Peers
from msfusion.runtimes.run import CAPACITIES, Run
from msfusion.settings import filled, validated


@dataclass(frozen=True)
class Model:
    """Which model to train.

    name: a shipped model, ``path/to/file.py:function``, ``hf:PATH`` or ``timm:NAME``.
    options: keyword arguments of its builder.
    axes: dims declared by hand, pattern over parameter names -> a dim per dimension.
    """

    name: str = "cnn"
    options: dict[str, JsonValue] = field(default_factory=dict)
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
