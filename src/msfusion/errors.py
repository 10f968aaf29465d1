"""The one exception that means "the user can mend this": a sentence that says what was expected, what was
got and what to do. The command line prints it and exits with 2; everything else is a bug and keeps its
traceback. Warnings on the command line are sentences as well."""

import warnings


class UserError(ValueError):
    """Bad input, configuration or data, explained in one sentence."""


class Diverged(UserError):
    """Training led to values that are not finite."""


class TooFew(UserError):
    """A participant has too few examples for batch norm: others train without it."""


def warn_in_sentences() -> None:
    """From now on this process shows warnings without the line of code that gave them."""
    warnings.formatwarning = _sentence


def _sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {kind}{message}\n"
