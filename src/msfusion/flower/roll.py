"""Which SuperNode is which participant."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from msfusion import records
from msfusion.errors import UserError
from msfusion.flower.exchange import POLL, Connection, Sent, connected, logger
from msfusion.flower.task import Waiting
from msfusion.flower.wire import Hello, named_in, shown
from msfusion.learn.capacity import Capacity

_SECONDS = 60.0  # at least, for an answer to the question who a SuperNode is
_AGAIN = 30.0  # seconds after which one that could not say is asked again
_REMIND = 30.0  # seconds between lines that say how many are here


@dataclass(frozen=True)
class Member:
    """A participant that is connected.

    capacity: what it can afford; None where it does not say.
    meaning: hash of what its labels or tokens stand for; None where it does not say.
    """

    examples: int
    connection: Connection
    capacity: Capacity | None
    meaning: str | None


@dataclass(frozen=True)
class _Asked:
    """A SuperNode that was asked who it is.

    at: when, on the clock time.monotonic.
    again: not for the first time since it came up; no round waits for what it says.
    """

    connection: Connection
    at: float
    again: bool


class Roll:
    """Asks every SuperNode that comes up who it is, and knows who is there.

    participants: how many there may be.
    check: raises UserError for a participant that states a capacity with which it cannot take part.
    meaning: hash of what labels or tokens stand for in the run; where it is none, what most of those say who
    are there before the first round.
    """

    def __init__(
        self,
        grid: Grid,
        participants: int,
        waiting: Waiting,
        check: Callable[[int, Capacity], None],
        meaning: str | None = None,
    ) -> None:
        self._grid, self._participants, self._waiting = grid, participants, waiting
        self._check = check
        self._seconds = max(_SECONDS, waiting.deadline)  # it may be read only when a round has ended
        self._hellos = Sent(grid, MessageType.QUERY, self._seconds)
        self._members: dict[int, Member] = {}  # by participant
        self._asked: dict[int, _Asked] = {}  # by node
        self._why: dict[int, tuple[int | None, str]] = {}  # node -> participant, why it is not let in
        self._places: dict[int, int] = {}  # node -> the participant that another node is already
        self._doubles: list[records.Dropped] = []
        self._agreed = meaning is not None
        self.meaning = meaning

    def first(self) -> dict[int, Member]:
        """Those who are there before the first round: all, or after some patience a quorum."""
        return self._await(first=True)

    def present(self) -> dict[int, Member]:
        """Those who are there, as soon as they are a quorum and everyone new has been heard; ascending."""
        return self._await(first=False)

    def absent(self, number: int) -> records.Dropped:
        """Why a participant is not there."""
        stated = [reason for other, reason in self._why.values() if other == number]
        unknown = [
            f"not connected, or SuperNode {node}, which does not say who it is: {reason}"
            for node, (other, reason) in self._why.items()
            if other is None
        ]
        asked = [
            f"not connected, or SuperNode {node}, which has not said yet who it is"
            for node in self._hellos.waiting
        ]
        return {"participant": number, "reason": [*stated, *unknown, *asked, "not connected"][0]}

    def doubles(self) -> list[records.Dropped]:
        """Second SuperNodes of one participant, which were left out; each is told once."""
        told, self._doubles = self._doubles, []
        return told

    def _await(self, *, first: bool) -> dict[int, Member]:
        quorum = self._waiting.least(self._participants)
        start = reminded = time.monotonic()
        while True:
            self._look()
            agreeing = self._agreeing()
            here = len(agreeing)
            settled = not (first or self._expects_news())
            patient = time.monotonic() < start + self._waiting.patience
            if here == self._participants or (here >= quorum and (settled or not patient)):
                self.meaning, self._agreed = next(iter(agreeing.values())).meaning, True
                return agreeing
            if time.monotonic() > reminded + _REMIND:
                reminded = time.monotonic()
                why = "; ".join(f"SuperNode {node}: {reason}" for node, (_, reason) in self._why.items())
                logger.info("%d of %d participants are here%s", here, self._participants, why and f" ({why})")
            time.sleep(POLL)

    def _expects_news(self) -> bool:
        """Whether somebody who has just come up has not yet said who it is."""
        asked = [self._asked[node] for node in self._hellos.waiting]
        since = time.monotonic() - self._waiting.patience
        return any(one.at > since and not one.again for one in asked)

    def _look(self) -> None:
        for node, message in self._hellos.answers():
            self._welcome(node, message)
        up = connected(self._grid)
        for node, asked in list(self._asked.items()):
            if up.get(node) != asked.connection:
                self._forget(node)
        for connection in up.values():
            if self._due(connection.node):
                self._ask(connection)

    def _due(self, node: int) -> bool:
        """Whether it is time to ask a SuperNode who it is."""
        if node not in self._asked:
            return True
        known = {*self._places, *(member.connection.node for member in self._members.values())} - {*self._why}
        pause = self._seconds if node in self._hellos.waiting else _AGAIN
        return node not in known and time.monotonic() > self._asked[node].at + pause

    def _ask(self, connection: Connection) -> None:
        node = connection.node
        self._hellos.forget(node)
        self._asked[node] = _Asked(connection, time.monotonic(), again=node in self._asked)
        self._hellos.send(node, node, RecordDict())

    def _forget(self, node: int) -> None:
        self._asked.pop(node, None)
        self._hellos.forget(node)
        self._why.pop(node, None)
        self._places.pop(node, None)
        left = [number for number, member in self._members.items() if member.connection.node == node]
        for number in left:
            logger.info("participant %d is gone", number)
            del self._members[number]
            for other in [other for other, place in self._places.items() if place == number]:
                self._forget(other)  # asked anew, it takes the place

    def _welcome(self, node: int, message: Message) -> None:
        number = None
        try:
            if message.has_error():
                raise UserError(str(message.error.reason))
            number = named_in(message.content)
            hello = Hello.read(message.content)
            number = hello.number
            if number >= self._participants:
                raise UserError(f"expected a partition-id below {self._participants}, got {number}")
            if hello.capacity:
                self._check(number, hello.capacity)
        except UserError as error:
            self._refuse(node, number, shown(str(error)))
            return
        there = self._members.get(number)
        if there and (there.connection.node == node or there.connection.node in self._why):
            del self._members[number]  # it says so anew, or cannot take part: the place is free
        if number in self._members:
            self._why.pop(node, None)
            reason = f"a second SuperNode, {node}, says that it is participant {number}"
            logger.warning("%s: left out", reason)
            self._doubles.append({"participant": number, "reason": reason})
            self._places[node] = number
            return
        self._members[number] = Member(
            hello.examples, self._asked[node].connection, hello.capacity, hello.meaning
        )
        logger.info("participant %d is here, with %d examples", number, hello.examples)

    def _agreeing(self) -> dict[int, Member]:
        """Those who are there, ascending, but for who has other labels or tokens than most; of as many, those
        of the lowest participant count."""
        members = dict(sorted(self._members.items()))
        meanings = [member.meaning for member in members.values()]
        if not meanings:
            return {}
        agreed = self.meaning if self._agreed else max(meanings, key=meanings.count)
        agreeing = {number: member for number, member in members.items() if member.meaning == agreed}
        for number, member in members.items():
            if number in agreeing:
                self._why.pop(member.connection.node, None)
            else:
                whose = f"participant {next(iter(agreeing))}" if agreeing else "the others"
                self._refuse(
                    member.connection.node,
                    number,
                    f"expected labels or tokens that stand for what they do at {whose}, got others: see to "
                    "it that both have the same classes, or the same vocabulary",
                )
        return agreeing

    def _refuse(self, node: int, number: int | None, why: str) -> None:
        if self._why.get(node) != (number, why):
            logger.warning("SuperNode %d cannot take part: %s", node, why)
        self._why[node] = number, why
