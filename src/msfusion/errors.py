"""The one exception that means "the user can mend this": a sentence that says what was expected, what was
got and what to do. The command line prints it and exits with 2; everything else is a bug and keeps its
traceback. Warnings on the command line are sentences as well."""

import warnings
from importlib import import_module
from typing import Any


class UserError(ValueError):
    """Bad input, configuration or data, explained in one sentence."""


class Diverged(UserError):
    """Training led to values that are not finite."""


class TooFew(UserError):
    """A participant has too few examples for batch norm: others train without it."""


def optional(module: str, what: str, *packages: str) -> Any:
    """A module that not every installation has; ``UserError`` where it cannot be imported.

    what: the package in words. packages: what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise missing(what, error, *packages) from error


def missing(what: str, error: ImportError, *packages: str) -> UserError:
    """What to say of a package that cannot be imported; arguments as for ``optional``."""
    quoted = " ".join(f'"{package}"' for package in packages)
    return UserError(f"expected {what}, but it cannot be imported ({error}): pip install {quoted}")


def warn_in_sentences() -> None:
    """From now on this process shows warnings without the line of code that gave them."""
    warnings.formatwarning = _sentence


def _sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {kind}{message}\n"
