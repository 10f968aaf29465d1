"""What commands print: a table or one JSON object on standard output, progress on standard error."""

import json as json_format
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from msfusion.errors import UserError
from msfusion.records import finite


def emit(data: Mapping[str, Any], text: object, *, json: bool) -> None:
    """Print ``data`` as one JSON object, or else ``text`` (a string or a rich renderable)."""
    if json:
        print(json_format.dumps(finite(data), allow_nan=False))
    else:
        console = Console()
        Console(width=None if console.is_terminal else 200).print(text, highlight=False, soft_wrap=True)


def require_positive(**numbers: int) -> None:
    """Raise UserError unless every number is at least 1."""
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"expected --{name} of at least 1, got {number}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    """A table whose first column is text and whose others are numbers."""
    out = Table(caption=caption, caption_justify="left")
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        out.add_row(*map(Text, row))  # plain text: square brackets are no markup
    return out


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display with the remaining time; silent when standard error is no terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    ) as display:
        yield display
