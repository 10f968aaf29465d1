"""A peer's link to the others: who is here, what they say, and pieces of values on request.

Every key begins with the group and a hash of the configuration, seed included, so that peers of different
runs never mix; values are asked for by version, which stands for the round and everything merged before.
"""

import contextlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from msfusion.errors import UserError
from msfusion.peers.board import Board
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.pieces import LOOK, Answered, Fetch, Sender, Wanted, checked
from msfusion.peers.solitude import Solitude
from msfusion.peers.splits import Splits
from msfusion.peers.states import State
from msfusion.peers.strip import CHUNK, Strip
from msfusion.peers.transport import opened, zenoh

Serve = Callable[[Sequence[str]], Strip | None]
"""What this peer has at a path, or None."""

_STATE: TypeAdapter[State] = TypeAdapter(State)
_PATIENCE = 300.0  # seconds for one piece: others may wait before it at a slow link
_SERVERS = 3  # threads that answer
_CLOSING = 5.0  # seconds that each may take to end
_GLANCE = 1.0  # seconds between two looks at who is missed
_ALONE = 10.0  # seconds without anybody before it is told


class Network:
    """An open session, opened anew where links to others do not come back by themselves.

    config: of the Zenoh session, as ``transport.configuration`` writes it; raises UserError where
        none can be opened.
    group, run: name of the group, and hash of the configuration.
    serve: called for requests of others, from several threads.
    sound: whether what another peer says of itself can be true; what cannot is passed over.
    stranger: called with the number of a peer that has another configuration.
    twin: called where another peer of the same run has this one's number.
    split: called with the numbers of those to whom there is no link, before the session is opened anew.
    wait: seconds without a link before that.
    alone: called where nobody of the group has been heard of for a while, with whether there is a link to
        anybody; once each.
    """

    def __init__(
        self,
        config: str,
        group: str,
        run: str,
        board: Board,
        serve: Serve,
        sound: Callable[[State], bool] = lambda state: True,
        stranger: Callable[[int], None] = lambda number: None,
        twin: Callable[[], None] = lambda: None,
        split: Callable[[Sequence[int]], None] = lambda numbers: None,
        wait: float = 10.0,
        alone: Callable[[bool], None] = lambda linked: None,
    ) -> None:
        self._zenoh = zenoh()
        self._config, self._board, self._serve, self._run = config, board, serve, run
        self._sound, self._stranger, self._twin, self._split = sound, stranger, twin, split
        self._splits = Splits(board.own.number, wait)
        self._alone, self._solitude = alone, Solitude(_ALONE)
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self._head = f"msfusion/{group}"
        self._closing = threading.Event()
        self._session: Any = None
        self._threads = [threading.Thread(target=own, daemon=True) for own in (self._mend, self._speak)]
        self._threads[0].start()  # before there is a session: who only connects has none without a router
        try:
            self._open()
        except BaseException:
            self._closing.set()
            raise
        self._threads[1].start()

    def close(self) -> None:
        """Leave the group. Threads are waited for: one that is still inside Zenoh when the interpreter ends
        can keep the process from ending."""
        self._closing.set()
        self._board.wake()
        for thread in self._threads:
            thread.join(_CLOSING)
        self._shut()

    def _open(self) -> None:
        own, head = self._board.own, f"{self._head}/{self._run}"
        handlers = self._zenoh.handlers
        session = opened(self._config)
        self._declared = [
            session.liveliness().declare_subscriber(
                f"{self._head}/live/**", handlers.Callback(self._on_live, indirect=True), history=True
            ),
            session.declare_subscriber(f"{head}/state/*", handlers.Callback(self._on_state, indirect=True)),
        ]
        queryable = session.declare_queryable(f"{head}/ask/{own.number}/**", handlers.FifoChannel(256))
        self._answering = [
            threading.Thread(target=self._answer, args=(queryable,), daemon=True) for _ in range(_SERVERS)
        ]
        for thread in self._answering:
            thread.start()
        self._token = session.liveliness().declare_token(
            f"{self._head}/live/{self._run}/{own.number}/{own.session}"
        )
        self._session = session

    def _shut(self) -> None:
        with contextlib.suppress(self._zenoh.ZError):  # it is shut already
            self._token.undeclare()
            self._session.close()
        for thread in self._answering:
            thread.join(_CLOSING)
        self._board.unlinked()

    def _mend(self) -> None:
        """Open the session anew where there is no link to someone who is about; tell where nobody is."""
        while not self._closing.wait(_GLANCE):
            if self._solitude.overdue(linked := self._linked(), time.monotonic()):
                self._alone(linked)
            if missed := self._splits.overdue(self._board.missed(), time.monotonic()):
                self._split(missed)
                self._reopen()

    def _linked(self) -> bool:
        """Whether there is a link to anybody, who need not be allowed to say anything."""
        if self._session is None:
            return False
        info = self._session.info
        return bool(info.peers_zid() or info.routers_zid())

    def _reopen(self) -> None:
        self._shut()
        while not self._closing.is_set():
            with contextlib.suppress(
                self._zenoh.ZError, UserError
            ):  # the address that it listened on is not free yet
                self._open()
                return
            self._closing.wait(_GLANCE)

    def fetch(self, wanted: Iterable[Wanted], valid: Callable[[], bool]) -> None:
        """Fetch everything, in pieces, from several peers at a time; raises Disturbed as soon as ``valid``
        says no."""
        Fetch(wanted, self._request, self._board.link, self.received).run(valid)

    def text(self, sources: Sequence[int], path: str) -> bytes | None:
        """A text of unknown length from the first source that has it."""
        for source in sources:
            text = b""
            total: int | None = None
            while total is None or len(text) < total:
                piece = checked(self._answer_of(source, f"{path}/{len(text) // CHUNK}"))
                if piece is None or not piece[0]:
                    break
                text, total = text + piece[0], piece[1]
            else:
                return text
        return None

    def _answer_of(self, source: int, path: str) -> Any:
        """The answer of one peer; None where there is none, or its link goes before."""
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link = self._board.link(source)
        self._request(source, path, replies.put)
        while link is not None and link == self._board.link(source):
            with contextlib.suppress(queue.Empty):
                return replies.get(timeout=LOOK)
        return None

    def _request(self, source: int, path: str, answered: Answered) -> None:
        came: list[Any] = []

        def received(reply: Any) -> None:
            if not came:
                came.append(True)
                answered(reply)

        def ended() -> None:
            if not came:
                answered(None)

        try:
            self._session.get(
                f"{self._head}/{self._run}/ask/{source}/{path}",
                self._zenoh.handlers.Callback(received, ended, indirect=False),
                congestion_control=self._zenoh.CongestionControl.BLOCK,
                timeout=_PATIENCE,
            )
        except self._zenoh.ZError:
            ended()

    def _answer(self, queryable: Any) -> None:
        sender = Sender()
        while not self._closing.is_set():
            try:
                query = queryable.recv()
            except self._zenoh.ZError:
                return
            with query:
                _, asked, path = str(query.key_expr).partition(f"/ask/{self._board.own.number}/")
                try:
                    if asked:  # not by a wildcard
                        self._reply(query, path.split("/"), sender)
                except (Disturbed, ValueError, LookupError, OSError, self._zenoh.ZError):
                    continue  # gone since, or never there: no answer is the answer

    def _reply(self, query: Any, path: list[str], sender: Sender) -> None:
        *where, last = path
        strip = self._serve(where)
        piece = None if strip is None else sender.piece(strip, int(last))
        if piece is not None:
            query.reply(query.key_expr, piece[0], attachment=piece[1])
            self.sent[where[0]] += len(piece[0])

    def _speak(self) -> None:
        """Say what this peer is at, whenever it changes and every so often: messages may get lost."""
        board, key = self._board, f"{self._head}/{self._run}/state/{self._board.own.number}"
        kind, rank = self._zenoh.CongestionControl.DROP, self._zenoh.Priority.INTERACTIVE_HIGH
        while not self._closing.is_set():
            if (hears := frozenset(board.here())) != board.own.hears:
                board.update(hears=hears)
            own = board.own
            with contextlib.suppress(self._zenoh.ZError):  # it is being opened anew
                self._session.put(key, _STATE.dump_json(own), congestion_control=kind, priority=rank)
            board.wait(partial(self._differs, own), 0.5)

    def _differs(self, said: State) -> bool:
        return self._board.own is not said or self._closing.is_set()

    def _on_state(self, sample: Any) -> None:
        try:
            state = _STATE.validate_json(sample.payload.to_bytes())
        except ValidationError:
            return
        if str(sample.key_expr).rpartition("/")[2] == str(state.number) and self._sound(state):
            self._board.hear(state)

    def _on_live(self, sample: Any) -> None:
        run, number, session = str(sample.key_expr).split("/")[-3:]
        if not re.fullmatch("[0-9]{1,18}", number):
            return
        comes, own = sample.kind == self._zenoh.SampleKind.PUT, self._board.own
        if session != own.session:
            self._solitude.end()
        if run != self._run:
            if comes:
                self._stranger(int(number))
        elif not comes:
            self._board.left(int(number), session)
        elif int(number) == own.number and session != own.session:
            self._twin()
        else:
            self._board.arrived(int(number), session)
