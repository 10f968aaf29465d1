"""Ctrl-C that waits for a safe point."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Ctrl-C, raised where everything is in step and can be saved."""


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Hold back the first Ctrl-C until the yielded function is called, which then raises Stopped; the
    second one is raised at once, as a plain KeyboardInterrupt. Outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    held = _Held()
    before = signal.signal(signal.SIGINT, held)
    try:
        yield held.check
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    """Ctrl-C from within, which is no second one where the first is still held back."""
    handler = signal.getsignal(signal.SIGINT)
    if not (isinstance(handler, _Held) and handler.pressed):
        signal.raise_signal(signal.SIGINT)


@dataclass
class _Held:
    """A handler of Ctrl-C that remembers the first one."""

    pressed: bool = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def check(self) -> None:
        if self.pressed:
            raise Stopped
