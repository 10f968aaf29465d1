"""``msfusion flower new``: a Flower app around a model and data."""

import ast
import dataclasses
import json as json_format
import keyword
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from msfusion.commands.output import emit
from msfusion.commands.training import federation_of
from msfusion.config import Config, load
from msfusion.data import Data
from msfusion.errors import UserError
from msfusion.models.hugging_face import PREFIX
from msfusion.runtimes.run import check_exchange, check_real

_FILES = ("server_app.py", "client_app.py", "task.py")
_SHOWN = ("participants", "method", "rounds", "seed", "device", "train.lr", "train.batch", "train.steps")
"""Settings that an app states even where they have their defaults."""


def run(folder: Path, preset: str, settings: Mapping[str, Any], *, json: bool) -> None:
    """Write the app into a folder of its own."""
    config = load(preset, settings)
    check_exchange(config, "under Flower")
    check_real(config, "under Flower")
    own = _own_file(config)
    if own:
        _check_alone(own)
    name = _name(folder)
    facts = {
        "name": name,
        "app": name.replace("_", "-"),
        "settings": "\n".join(_lines(config)),
        **_task(config),
    }
    package = folder / name
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_filled("pyproject.toml", facts), encoding="utf-8")
    (package / "__init__.py").write_text("")
    for file in _FILES:
        (package / file).write_text(_filled(file, facts), encoding="utf-8")
    if own:
        shutil.copyfile(own, package / "model.py")
    size = f"num-supernodes={config.participants} client-resources-num-cpus=1"
    start = f"flwr run {shlex.quote(str(folder))} --federation-config '{size}' --stream"
    emit({"app": str(folder), "start": start}, f"app: {folder}; simulate it with: {start}", json=json)


def _name(folder: Path) -> str:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"expected a folder that is empty or absent, got {folder}: name another one")
    name = re.sub(r"\W+", "_", folder.resolve().name.lower()).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):  # what Flower and Python both take
        raise UserError(
            f"expected a folder with a name of at most 32 letters and digits, a letter first, got {name!r}"
        )
    found = None if keyword.iskeyword(name) else find_spec(name)
    if keyword.iskeyword(name) or (found and found.origin):
        raise UserError(
            f"expected a folder named as no word and no module of Python, got {name!r}: name another one"
        )
    return name


def _filled(file: str, facts: Mapping[str, str]) -> str:
    template = resources.files("msfusion") / "flower" / "template" / f"{file}.txt"
    return Template(template.read_text()).substitute(facts)


def _lines(config: Config) -> Iterator[str]:
    """The settings that differ from the defaults, as lines of TOML; first some that one often changes."""
    usual = dict(_flat(dataclasses.asdict(Config())))
    own = dict(_flat(dataclasses.asdict(config)))
    changed = {key for key, value in own.items() if value is not None and value != usual[key]}
    for key in [*_SHOWN, *(key for key in own if key in changed - set(_SHOWN))]:
        if isinstance(own[key], list | tuple):
            raise UserError(
                f"expected one value for {key}, got {own[key]}: under Flower each participant states its own "
                "in --node-config"
            )
        yield f"{key} = {json_format.dumps(own[key], ensure_ascii=False)}"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names, without those of the model, the data and peers."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            if key not in ("model", "data", "peers"):
                yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _task(config: Config) -> dict[str, str]:
    federation = federation_of(config)
    own = _own_file(config)
    function = config.model.name.rpartition(":")[2]
    axes = f", axes={config.model.axes!r}" if config.model.axes else ""
    return {
        "inputs": repr(federation.inputs),
        "path": "from pathlib import Path\n" if own else "",
        "model": f'str(Path(__file__).with_name("model.py")) + ":{function}"'
        if own
        else _literal(_found_anywhere(config.model.name)),
        "options": repr(config.model.options),
        "data": f"Data({', '.join(_changed(config.data))})",
        "objective": "language=True" if federation.task == "language" else "",
        "title": _literal(function if own else config.model.name),
        "axes": axes,
    }


def _changed(data: Data) -> Iterator[str]:
    for field in dataclasses.fields(Data):
        value = getattr(data, field.name)
        if field.name == "path" and value is not None:
            value = str(Path(value).resolve())
        if value != field.default or field.name == "name":
            yield f"{field.name}={_literal(value)}"


def _literal(value: object) -> str:
    """Python for a setting's value."""
    plain = isinstance(value, str) and value.isprintable()
    return json_format.dumps(value, ensure_ascii=False) if plain else repr(value)


def _found_anywhere(model: str) -> str:
    """A model's name, whatever the working directory: processes of an app have others."""
    if not model.startswith(PREFIX):
        return model
    found = re.fullmatch("(.+?)(#[^#]*)?", model.removeprefix(PREFIX))
    return f"{PREFIX}{Path(found[1]).resolve()}{found[2] or ''}" if found else model


_WHERE = """
import sys
from importlib.util import find_spec
found = find_spec(sys.argv[1])
print(found.origin if found and found.origin else "")
"""


def _check_alone(file: Path) -> None:
    """UserError where a model's file imports what lies beside it and is not installed: it is copied into the
    app alone."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes(), str(file))))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"expected a Python file that makes the model, cannot read {file}: {error}") from None
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    for name in dict.fromkeys(name.partition(".")[0] for name in names):
        places = (file.parent / name / "__init__.py", file.parent / f"{name}.py")
        beside = next((place for place in places if place.is_file()), None)
        if beside and not _installed(name, beside):
            raise UserError(
                f"expected a model whose file imports nothing beside it that is not installed, as it is "
                f"copied into the app alone, but {file} imports {name}: put all into one file, or install "
                f"{name}"
            )


def _installed(name: str, beside: Path) -> bool:
    """Whether a process that knows nothing of this folder, nor of PYTHONPATH, finds a module, and one that is
    the same as far as its first file tells: another of that name may be installed."""
    command = [sys.executable, "-EP", "-c", _WHERE, name]
    origin = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return origin.is_file() and origin.read_bytes() == beside.read_bytes()


def _own_file(config: Config) -> Path | None:
    """The user's file that makes the model, if one does."""
    file = Path(config.model.name.rpartition(":")[0])
    return file if file.suffix == ".py" else None
