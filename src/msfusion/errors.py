"""The one exception that means "the user can mend this": a sentence that says what was expected, what was
got and what to do. The command line prints it and exits with 2; everything else is a bug and keeps its
traceback."""


class UserError(ValueError):
    """Bad input, configuration or data, explained in one sentence."""


class Diverged(UserError):
    """Training led to values that are not finite."""


class TooFew(UserError):
    """A participant has too few examples for batch norm: others train without it."""
