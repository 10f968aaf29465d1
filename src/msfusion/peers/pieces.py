"""Values on their way: pieces of at most 1 MiB, each with its hash, asked for until they have arrived."""

import queue
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xxhash import xxh3_128_digest

from msfusion.peers.disturbed import Disturbed
from msfusion.peers.strip import CHUNK, Strip

_HEAD = struct.Struct("<16sQ")  # hash of the piece, bytes of the whole
_FLYING = 8  # requests under way at a time
LOOK = 0.25  # seconds after which requests without an answer are looked at again
_PAUSE = 0.1  # seconds before a request that failed is made again

Answered = Callable[[Any], None]
"""Told the one answer to a request, or None where there is none."""


@dataclass(frozen=True)
class Wanted:
    """Something to fetch.

    sources: peers that have it, best first, as known at that moment.
    path: what it is called there.
    sink: where its bytes go; it has exactly its length.
    """

    sources: Callable[[], Sequence[int]]
    path: str
    sink: Strip


@dataclass(frozen=True)
class _Asked:
    """A request: a piece, how often it was asked for before, whom, and over which link."""

    wanted: Wanted
    chunk: int
    tries: int = 0
    source: int | None = None
    link: int | None = None


class Sender:
    """Answers requests for pieces; one for each thread, as its memory serves again."""

    def __init__(self) -> None:
        self._buffer = bytearray(CHUNK)

    def piece(self, strip: Strip, chunk: int) -> tuple[bytearray, bytes] | None:
        """Payload and attachment of an answer, the payload until the next call; None where there is no such
        piece. The hash is told with the piece: it finds damage, while TLS keeps strangers out."""
        if not 0 <= chunk < max(1, strip.chunks):
            return None
        length = strip.length(chunk)
        data = self._buffer if length == CHUNK else bytearray(length)
        strip.read(chunk, data)
        return data, _HEAD.pack(xxh3_128_digest(data), len(strip))


def checked(reply: Any) -> tuple[bytes, int] | None:
    """The piece that an answer holds and the bytes of the whole; None for no answer, an error or damage."""
    if reply is None or reply.ok is None or reply.ok.attachment is None:
        return None
    data: bytes = reply.ok.payload.to_bytes()
    head = reply.ok.attachment.to_bytes()
    if len(head) != _HEAD.size:
        return None
    digest, total = _HEAD.unpack(head)
    return (data, total) if digest == xxh3_128_digest(data) else None


class Fetch:
    """Fetches everything, several pieces at a time; what fails is asked for again, from the next source.

    A request to a peer that dies under it may never end: it counts as failed once its link is gone.

    request: asks one peer for a piece by its path, and calls back once, from any thread.
    link: None while a peer is not here, and another number each time that it comes.
    received: counts bytes by the first part of the path.
    """

    def __init__(
        self,
        wanted: Iterable[Wanted],
        request: Callable[[int, str, Answered], None],
        link: Callable[[int], int | None],
        received: Counter[str],
    ) -> None:
        self._request, self._link, self._received = request, link, received
        self._waiting = deque(_Asked(one, chunk) for one in wanted for chunk in range(one.sink.chunks))
        self._flying: dict[int, _Asked] = {}
        self._lock = threading.Lock()
        self._arrived: queue.SimpleQueue[tuple[_Asked, bool]] = queue.SimpleQueue()

    def run(self, valid: Callable[[], bool]) -> None:
        """Return when all is there; raises Disturbed as soon as ``valid`` says no, and writes no more."""
        number = 0
        try:
            while self._waiting or self._flying or not self._arrived.empty():
                if not valid():
                    raise Disturbed
                while self._waiting and len(self._flying) < _FLYING:
                    self._ask(number, self._waiting.popleft())
                    number += 1
                self._settle()
        finally:
            with self._lock:
                self._flying.clear()

    def _settle(self) -> None:
        """Wait for one piece, a moment at most."""
        try:
            asked, whole = self._arrived.get(timeout=LOOK)
        except queue.Empty:
            with self._lock:
                flying = dict(self._flying)
            for number in [n for n, asked in flying.items() if self._lost(asked)]:
                self._answered(number, None)
            return
        if not whole:
            self._waiting.append(replace(asked, tries=asked.tries + 1))
            if not self._flying:
                time.sleep(_PAUSE)

    def _ask(self, number: int, piece: _Asked) -> None:
        sources = piece.wanted.sources()
        source = sources[piece.tries % len(sources)] if sources else None
        link = None if source is None else self._link(source)
        self._flying[number] = replace(piece, source=source, link=link)
        if source is None:
            self._answered(number, None)
            return
        path = f"{piece.wanted.path}/{piece.chunk}"
        self._request(source, path, lambda reply: self._answered(number, reply))

    def _lost(self, asked: _Asked) -> bool:
        return asked.source is not None and (asked.link is None or asked.link != self._link(asked.source))

    def _answered(self, number: int, reply: Any) -> None:
        """Put a piece in its place, in the thread that it came in: its bytes are still in the cache."""
        piece = checked(reply)
        with self._lock:
            asked = self._flying.pop(number, None)
            if asked is None:
                return
            whole = piece is not None and asked.wanted.sink.write(asked.chunk, piece[0])
            if piece is not None and whole:
                self._received[asked.wanted.path.partition("/")[0]] += len(piece[0])
            self._arrived.put((asked, whole))
