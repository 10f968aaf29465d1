"""Models from a user's own file, ``path/to/file.py:function``."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from msfusion.errors import UserError
from msfusion.models.inputs import InputSpec, example
from msfusion.models.options import check_names

Built = tuple[nn.Module, tuple[torch.Tensor, ...]]
"""A module and the example inputs that it is called with."""


def build_from_file(spec: str, inputs: InputSpec | None, options: Mapping[str, object]) -> Built:
    """Calls ``function(**options)`` of the file that ``spec`` names.

    The function returns a module, or a module and its example inputs (a tensor or a tuple of tensors), which
    serve where there are no data. ``UserError`` where the file, the function or an option does not exist, the
    result is something else, or the file's own code fails."""
    function = _function(spec)
    _check_options(spec, function, options)
    with _explained(Path(spec.rpartition(":")[0])):
        result = function(**options)
    if isinstance(result, nn.Module):
        return result, (_example(spec, inputs),)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module):
        own = _as_tensors(spec, result[1])
        return result[0], own if inputs is None else (example(inputs),)
    raise UserError(
        f"expected {spec} to return a torch.nn.Module or (module, example_inputs), got "
        f"{type(result).__name__}: mend its return statement"
    )


def _function(spec: str) -> Callable[..., object]:
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise UserError(f"expected path/to/file.py:function, got {spec!r}: name the function behind a colon")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"expected a Python file, got {file!r}, which does not exist: correct the path")
    function = getattr(_import(path), name, None)
    if not callable(function):
        raise UserError(f"expected a function {name!r} in {file}, found none: define it or correct the name")
    return function  # type: ignore[no-any-return]


def _import(path: Path) -> ModuleType:
    # The name is unique per file, so that two files called model.py do not share an entry in sys.modules.
    name = f"msfusion_user_{sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None, path
    assert module_spec.loader is not None, path
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    with _explained(path):
        module_spec.loader.exec_module(module)
    return module


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Runs code of a user's file: what it raises becomes a ``UserError`` that names file, line and error."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        first = said.strip().splitlines()[0] if said.strip() else "no message"
        raise UserError(
            f"expected {path} to build a model, got at {_place(path, error)} "
            f"{type(error).__name__}: {first}; mend that line"
        ) from error


def _place(path: Path, error: BaseException) -> str:
    """``file:line`` of a syntax error, else of the innermost line of the file that was running."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f"{path}:{own[-1]}" if own else str(path)


def _check_options(spec: str, function: Callable[..., object], options: Mapping[str, object]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_names(spec, options, [p.name for p in parameters])
    for p in parameters:
        if (
            p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in options
        ):
            raise UserError(f"expected a value for the option {p.name!r} of {spec}, got none: set it")


def _example(spec: str, inputs: InputSpec | None) -> torch.Tensor:
    if inputs is None:
        raise UserError(
            f"expected example inputs for {spec}, got a module alone and no data: "
            "return both, (module, example_inputs)"
        )
    return example(inputs)


def _as_tensors(spec: str, value: object) -> tuple[torch.Tensor, ...]:
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, tuple | list) and value and all(isinstance(v, torch.Tensor) for v in value):
        return tuple(value)
    got = type(value).__name__
    if isinstance(value, tuple | list):
        got += f" of {', '.join(type(v).__name__ for v in value) or 'nothing'}"
    raise UserError(
        f"expected example inputs of {spec} to be a tensor or a tuple of tensors, got {got}: "
        "return what the module's forward takes"
    )
