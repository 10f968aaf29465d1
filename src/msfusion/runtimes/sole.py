"""One process at a time in a run directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from weakref import WeakSet

from msfusion.errors import UserError


@contextmanager
def sole(directory: Path, kind: str, instead: str) -> Iterator[None]:
    """Keep other processes from the run in a directory; UserError where one has it already. The operating
    system lets go of it when this process ends, however it ends; processes forked from it hold nothing. A
    file system without locks keeps nobody out.

    kind: what has the run, such as "ServerApp".
    instead: what to do where another one is there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"expected nobody else at the run in {directory}, but another {kind} is: {instead}"
            ) from None
        except OSError:
            pass
        _HELD.add(file)
        yield


_HELD: WeakSet[IO[str]] = WeakSet()


def _let_go() -> None:
    for file in _HELD:
        file.close()


os.register_at_fork(after_in_child=_let_go)
