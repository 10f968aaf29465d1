"""Which SuperNode is which participant."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from msfusion import records
from msfusion.errors import UserError
from msfusion.flower.exchange import POLL, Connection, Sent, connected, logger
from msfusion.flower.task import Waiting
from msfusion.flower.wire import Hello, refused_by
from msfusion.learn.capacity import Capacity

_SECONDS = 60.0  # for an answer to the question who a SuperNode is
_REMIND = 30.0  # seconds between lines that say how many are here


@dataclass(frozen=True)
class Member:
    """A participant that is connected.

    capacity: what it can afford; None where it does not say.
    """

    examples: int
    connection: Connection
    capacity: Capacity | None


class Roll:
    """Asks every SuperNode that comes up who it is, and knows who is there.

    participants: how many there may be.
    capacities: what each can afford, if the run has begun with that: who states another one is not let in.
    """

    def __init__(
        self, grid: Grid, participants: int, waiting: Waiting, capacities: Sequence[Capacity] = ()
    ) -> None:
        self._grid, self._participants, self._waiting = grid, participants, waiting
        self.capacities = capacities
        self._members: dict[int, Member] = {}  # by participant
        self._asked: dict[int, tuple[Connection, float]] = {}  # node -> when it came up, when it was asked
        self._hellos = Sent(grid, MessageType.QUERY, _SECONDS)
        self._why: dict[int, str] = {}  # participant -> why it could not be let in
        self._doubles: list[records.Dropped] = []

    def first(self) -> dict[int, Member]:
        """Those who are there before the first round: all, or after some patience a quorum."""
        return self._await(first=True)

    def present(self) -> dict[int, Member]:
        """Those who are there, as soon as they are a quorum and everyone new has been heard; ascending."""
        return self._await(first=False)

    def absent(self, number: int) -> records.Dropped:
        """Why a participant is not there."""
        return {"participant": number, "reason": self._why.get(number, "not connected")}

    def doubles(self) -> list[records.Dropped]:
        """Second SuperNodes of one participant, which were left out; each is told once."""
        told, self._doubles = self._doubles, []
        return told

    def _await(self, *, first: bool) -> dict[int, Member]:
        quorum = self._waiting.least(self._participants)
        start = reminded = time.monotonic()
        while True:
            self._look()
            here = len(self._members)
            settled = not (first or self._hellos.waiting)
            patient = time.monotonic() < start + self._waiting.patience
            if here == self._participants or (here >= quorum and (settled or not patient)):
                return dict(sorted(self._members.items()))
            if time.monotonic() > reminded + _REMIND:
                reminded = time.monotonic()
                logger.info("%d of %d participants are here", here, self._participants)
            time.sleep(POLL)

    def _look(self) -> None:
        up = connected(self._grid)
        for node, (connection, asked) in list(self._asked.items()):
            unheard = node in self._hellos.waiting and time.monotonic() > asked + _SECONDS
            if unheard or up.get(node) != connection:
                self._forget(node)
        for node, connection in up.items():
            if node not in self._asked:
                self._asked[node] = (connection, time.monotonic())
                self._hellos.send(node, node, RecordDict())
        for node, message in self._hellos.answers():
            if node in self._asked:
                self._welcome(node, message)

    def _forget(self, node: int) -> None:
        del self._asked[node]
        self._hellos.forget(node)
        left = [number for number, member in self._members.items() if member.connection.node == node]
        for number in left:
            logger.info("participant %d is gone", number)
            del self._members[number]
        if left:  # a second SuperNode may now take the place
            members = {member.connection.node for member in self._members.values()}
            self._asked = {node: asked for node, asked in self._asked.items() if node in members}

    def _welcome(self, node: int, message: Message) -> None:
        number = None
        try:
            if message.has_error():
                raise UserError(str(message.error.reason))
            number = refused_by(message.content)
            hello = Hello.read(message.content)
            number = hello.number
            if number >= self._participants:
                raise UserError(f"expected a partition-id below {self._participants}, got {number}")
            if self.capacities and hello.capacity not in (None, self.capacities[number]):
                raise UserError(
                    f"expected the capacity that the run began with, {self.capacities[number]}, "
                    f"got {hello.capacity}"
                )
        except UserError as error:
            logger.warning("SuperNode %d cannot take part: %s", node, error)
            if number is not None:
                self._why[number] = str(error)
            return
        if number in self._members:
            reason = f"a second SuperNode, {node}, says that it is participant {number}"
            logger.warning("%s: left out", reason)
            self._doubles.append({"participant": number, "reason": reason})
            return
        self._members[number] = Member(hello.examples, self._asked[node][0], hello.capacity)
        self._why.pop(number, None)
        logger.info("participant %d is here, with %d examples", number, hello.examples)
