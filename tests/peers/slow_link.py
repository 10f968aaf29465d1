"""A TCP proxy that passes on so many bytes per second and direction, for tests."""

import contextlib
import socket
import threading
import time
from collections import Counter

_BLOCK = 1 << 14
_BURST = 0.1  # seconds that a link which was late may catch up on


class SlowLink:
    """Listens on ``port`` and passes on to ``target`` on this machine; counts bytes, ``towards`` it and
    ``back``."""

    def __init__(self, target: int, rate: float) -> None:
        self._target, self._rate = target, rate
        self.bytes: Counter[str] = Counter()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _BLOCK)  # little waits inside
        self.port = int(self._listening.getsockname()[1])
        self._sockets = [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _BLOCK)
                far.connect(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for ends in ((near, far, "towards"), (far, near, "back")):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        free = 0.0  # when the link is free for the next block
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK):
                free = max(free, time.monotonic() - _BURST) + len(block) / self._rate
                time.sleep(max(0.0, free - time.monotonic()))
                sink.sendall(block)
                self.bytes[direction] += len(block)
            sink.shutdown(socket.SHUT_WR)
