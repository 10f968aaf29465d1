"""Work that waits for others, in threads of its own."""

import threading
from collections.abc import Callable, Hashable

from msfusion.peers.disturbed import Disturbed


class Tasks:
    """Runs each piece of work once at a time; errors other than Disturbed are raised by ``check``.

    wake: called when one has ended.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._running: set[Hashable] = set()
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def start(self, key: Hashable, work: Callable[[], None]) -> None:
        """Start work, unless the same is under way."""
        with self._lock:
            if key in self._running:
                return
            self._running.add(key)
        threading.Thread(target=self._run, args=(key, work), daemon=True).start()

    def check(self) -> None:
        """Raise the error that a piece of work ended with."""
        if self._error is not None:
            raise self._error

    def _run(self, key: Hashable, work: Callable[[], None]) -> None:
        try:
            work()
        except Disturbed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            with self._lock:
                self._running.discard(key)
            self._wake()
