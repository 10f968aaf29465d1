"""Options of a model: are their names known and their values allowed."""

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from inspect import signature

from pydantic import ValidationError, validate_call
from torch import nn

from msfusion.errors import UserError
from msfusion.settings import boolean_in, wants_number


def nearest(name: str, names: Collection[str]) -> str:
    """The end of an error message: the nearest of ``names``, or all of them where none is near."""
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(names)) or 'none'}"


def check_names(model: str, options: Collection[str], known: Collection[str]) -> None:
    """``UserError`` for the first option that ``model`` does not take."""
    for name in options:
        if name not in known:
            raise UserError(f"expected an option of {model}, got {name!r}: {nearest(name, known)}")


def call(model: str, make: Callable[..., nn.Module], options: Mapping[str, object]) -> nn.Module:
    """``make(**options)`` with the values checked against the annotations of ``make``: lists become tuples,
    and a wrong type or a value out of range is a ``UserError``."""
    checked = validate_call(make)
    hints = {name: one.annotation for name, one in signature(make, eval_str=True).parameters.items()}
    for name, value in options.items():
        if (wrong := boolean_in(value)) and wants_number(hints[name]):
            raise UserError(f"expected a number for the option {name!r} of {model}, got {wrong}: correct it")
    try:
        return checked(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Input should be ")
        raise UserError(
            f"expected the option {name!r} of {model} to be {said}, got {first['input']!r}: correct the value"
        ) from error


def option_names(make: Callable[..., nn.Module]) -> list[str]:
    """The keywords that ``make`` takes."""
    return list(signature(make).parameters)
