"""A peer's link to the others: who is here, what they say, and pieces of values on request.

Every key begins with the group and a hash of the configuration, seed included, so that peers of different
runs never mix; values are asked for by version, which stands for the round and everything merged before.
"""

import contextlib
import queue
import struct
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from msfusion.peers.agreement import State
from msfusion.peers.board import Board
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.strip import CHUNK, Strip
from msfusion.peers.transport import zenoh

Serve = Callable[[Sequence[str]], Strip | None]
"""What this peer has at a path, or None."""

_STATE: TypeAdapter[State] = TypeAdapter(State)
_HEAD = struct.Struct("<IQ")  # checksum of the chunk, bytes of the whole
_FLYING = 8  # requests under way at a time
_PATIENCE = 60.0  # seconds for one chunk
_LOOK = 0.25  # seconds after which a request without an answer is looked at again
_PAUSE = 0.1  # seconds before a request that failed is made again
_SERVERS = 3  # threads that answer


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
    """A request under way: a chunk, how often it was asked for before, whom, and over which link."""

    wanted: Wanted
    chunk: int
    tries: int
    source: int | None
    link: int | None


class Network:
    """An open session.

    config: of the Zenoh session, as ``transport.configuration`` writes it.
    group, run: name of the group, and hash of the configuration.
    serve: called for requests of others, from several threads.
    stranger: called with the number of a peer that has another configuration.
    """

    def __init__(
        self,
        config: str,
        group: str,
        run: str,
        board: Board,
        serve: Serve,
        stranger: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._zenoh = zenoh()
        self._board, self._serve, self._run = board, serve, run
        self._stranger = stranger
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self._head = f"msfusion/{group}"
        self._zenoh.init_log_from_env_or("error")  # who is refused is said there
        self._session = self._zenoh.open(self._zenoh.Config.from_json5(config))
        own = board.own
        callback = self._zenoh.handlers.Callback
        self._declared = [
            self._session.liveliness().declare_subscriber(
                f"{self._head}/live/**", callback(self._on_live, indirect=True), history=True
            ),
            self._session.declare_subscriber(
                f"{self._head}/{run}/state/*", callback(self._on_state, indirect=True)
            ),
        ]
        self._queryable = self._session.declare_queryable(
            f"{self._head}/{run}/ask/{own.number}/**", self._zenoh.handlers.FifoChannel(256)
        )
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._answer, daemon=True) for _ in range(_SERVERS)]
        self._threads.append(threading.Thread(target=self._speak, daemon=True))
        for thread in self._threads:
            thread.start()
        self._token = self._session.liveliness().declare_token(
            f"{self._head}/live/{run}/{own.number}/{own.session}"
        )

    def close(self) -> None:
        """Leave the group."""
        self._closing.set()
        self._board.wake()
        self._token.undeclare()
        self._session.close()

    def fetch(self, wanted: Iterable[Wanted], valid: Callable[[], bool]) -> None:
        """Fetch everything, in chunks, from several peers at a time; what fails is asked for again, also from
        the next source. Raises Disturbed as soon as ``valid`` says no.

        A request to a peer that dies under it may never end: it counts as failed once its link is gone."""
        waiting = deque((one, chunk, 0) for one in wanted for chunk in range(one.sink.chunks))
        replies: Replies = queue.SimpleQueue()
        flying: dict[int, _Asked] = {}
        number = 0
        while waiting or flying:
            if not valid():
                raise Disturbed
            while waiting and len(flying) < _FLYING:
                flying[number] = self._ask(number, *waiting.popleft(), replies)
                number += 1
            try:
                answered, piece = replies.get(timeout=_LOOK)
            except queue.Empty:
                for lost in [n for n, asked in flying.items() if self._lost(asked)]:
                    replies.put((lost, None))
                continue
            if answered not in flying:
                continue
            asked = flying.pop(answered)
            one, chunk = asked.wanted, asked.chunk
            if piece is None or not one.sink.write(chunk, piece.data):
                waiting.append((one, chunk, asked.tries + 1))
                if not flying:
                    time.sleep(_PAUSE)
            else:
                self.received[one.path.partition("/")[0]] += len(piece.data)

    def text(self, sources: Sequence[int], path: str) -> bytes | None:
        """A text of unknown length from the first source that has it."""
        for source in sources:
            text = b""
            total: int | None = None
            while total is None or len(text) < total:
                piece = self._piece(source, f"{path}/{len(text) // CHUNK}")
                if piece is None or not piece.data:
                    break
                text, total = text + piece.data, piece.total
            else:
                return text
        return None

    def _piece(self, source: int, path: str) -> "_Piece | None":
        """One chunk from one peer."""
        replies: Replies = queue.SimpleQueue()
        link = self._board.link(source)
        self._request(0, source, path, replies)
        while link is not None and link == self._board.link(source):
            with contextlib.suppress(queue.Empty):
                return replies.get(timeout=_LOOK)[1]
        return None

    def _ask(self, number: int, one: Wanted, chunk: int, tries: int, replies: "Replies") -> _Asked:
        sources = one.sources()
        if not sources:
            replies.put((number, None))
            return _Asked(one, chunk, tries, None, None)
        source = sources[tries % len(sources)]
        link = self._board.link(source)
        self._request(number, source, f"{one.path}/{chunk}", replies)
        return _Asked(one, chunk, tries, source, link)

    def _lost(self, asked: _Asked) -> bool:
        return asked.source is not None and (
            asked.link is None or asked.link != self._board.link(asked.source)
        )

    def _request(self, number: int, source: int, path: str, replies: "Replies") -> None:
        def received(reply: Any) -> None:
            replies.put((number, _checked(reply)))

        def ended() -> None:
            replies.put((number, None))  # without an answer before it, this is the failure

        try:
            self._session.get(
                f"{self._head}/{self._run}/ask/{source}/{path}",
                self._zenoh.handlers.Callback(received, ended, indirect=False),
                congestion_control=self._zenoh.CongestionControl.BLOCK,
                timeout=_PATIENCE,
            )
        except self._zenoh.ZError:
            replies.put((number, None))

    def _answer(self) -> None:
        while not self._closing.is_set():
            try:
                query = self._queryable.recv()
            except self._zenoh.ZError:
                return
            with query:
                path = str(query.key_expr).split(f"/ask/{self._board.own.number}/", 1)[1].split("/")
                try:
                    self._reply(query, path)
                except (Disturbed, ValueError, KeyError, OSError, self._zenoh.ZError):
                    continue  # gone since, or never there: no answer is the answer

    def _reply(self, query: Any, path: list[str]) -> None:
        *where, last = path
        strip = self._serve(where)
        chunk = int(last)
        if strip is None or not 0 <= chunk < max(1, strip.chunks):
            return
        data = strip.read(chunk)
        query.reply(query.key_expr, data, attachment=_HEAD.pack(zlib.crc32(data), len(strip)))
        self.sent[where[0]] += len(data)

    def _speak(self) -> None:
        """Say what this peer is at, whenever it changes and every so often: messages may get lost."""
        board, key = self._board, f"{self._head}/{self._run}/state/{self._board.own.number}"
        kind, rank = self._zenoh.CongestionControl.DROP, self._zenoh.Priority.INTERACTIVE_HIGH
        while not self._closing.is_set():
            own = board.own
            try:
                self._session.put(key, _STATE.dump_json(own), congestion_control=kind, priority=rank)
            except self._zenoh.ZError:
                return
            board.wait(partial(self._differs, own), 0.5)

    def _differs(self, said: State) -> bool:
        return self._board.own is not said or self._closing.is_set()

    def _on_state(self, sample: Any) -> None:
        try:
            state = _STATE.validate_json(sample.payload.to_bytes())
        except ValidationError:
            return
        if str(sample.key_expr).rpartition("/")[2] == str(state.number):
            self._board.hear(state)

    def _on_live(self, sample: Any) -> None:
        run, number, session = str(sample.key_expr).split("/")[-3:]
        if not number.isdigit():
            return
        if run != self._run:
            self._stranger(int(number))
        elif sample.kind == self._zenoh.SampleKind.PUT:
            self._board.arrived(int(number), session)
        else:
            self._board.left(int(number), session)


@dataclass(frozen=True)
class _Piece:
    """One chunk, and how many bytes there are in all."""

    data: bytes
    total: int


Replies = queue.SimpleQueue[tuple[int, _Piece | None]]
"""(number of the request, what came of it)."""


def _checked(reply: Any) -> _Piece | None:
    """What an answer holds; None for an error or damaged bytes."""
    if reply.ok is None or reply.ok.attachment is None:
        return None
    data: bytes = reply.ok.payload.to_bytes()
    head = reply.ok.attachment.to_bytes()
    if len(head) != _HEAD.size:
        return None
    checksum, total = _HEAD.unpack(head)
    return _Piece(data, total) if checksum == zlib.crc32(data) else None
