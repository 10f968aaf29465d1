"""What a function, such as the loss of a user's own, may remember from one call to the next.

Processes do not share that: each would go on from what it has seen itself.
"""

import dis
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor

_CONSTANT = (
    *(int, float, complex, str, bytes, range, NoneType, BuiltinFunctionType, Tensor),
    *(tuple, frozenset, partial, MethodType),  # their parts are looked at
)


def may_remember(function: Any) -> str | None:
    """What may be changed by a call, in words; None where nothing is in sight. Tensors may be constants, and
    count as such."""
    for thing in _reached(function, set()):
        if isinstance(thing, FunctionType):
            if written := _written(thing):
                return f"the variable {written}"
            if set(vars(thing)) - {"__wrapped__"}:
                return f"attributes of {thing.__name__}"
        elif not isinstance(thing, _CONSTANT) and getattr(thing, "__dict__", True):
            return f"an object of type {type(thing).__name__}"
    return None


def remembered(function: Any) -> list[Any]:
    """What it knows now: equal before and after a call that changes nothing."""
    return [_known(thing) for thing in _reached(function, set())]


def _known(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return id(thing), thing._version
    return repr(thing) if isinstance(thing, int | float | complex | str | bytes) else id(thing)


def _reached(thing: Any, known: set[int]) -> Iterator[Any]:
    """The thing, and whatever it holds or names, each once; not code and classes, nor what is of torch."""
    if id(thing) in known or isinstance(thing, ModuleType | type):
        return
    if not isinstance(thing, Tensor) and _of_torch(thing):
        return
    known.add(id(thing))
    yield thing
    for part in _parts(thing):
        yield from _reached(part, known)


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, FunctionType):
        named = (thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__)
        held = [cell.cell_contents for cell in thing.__closure__ or ()]
        return [*named, *held, *(thing.__defaults__ or ()), *vars(thing).values()]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return list(thing)
    if _opaque(thing):
        return []
    return [*vars(thing).values(), *([type(thing).__call__] if callable(thing) else [])]


def _opaque(thing: Any) -> bool:
    return isinstance(thing, Tensor | MethodType | partial) or not hasattr(thing, "__dict__")


def _of_torch(thing: Any) -> bool:
    where = thing.__module__ if isinstance(thing, FunctionType) else type(thing).__module__
    return (where or "").partition(".")[0] == torch.__name__


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of functions inside."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> list[str]:
    return [name for one in _codes(code) for name in one.co_names]


def _written(function: FunctionType) -> str | None:
    """A variable outside of the function that it writes to."""
    outer = function.__code__.co_freevars
    for code in _codes(function.__code__):
        for step in dis.get_instructions(code):
            if step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in outer):
                return str(step.argval)
    return None
