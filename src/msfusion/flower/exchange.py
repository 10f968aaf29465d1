"""Messages to SuperNodes and their answers, over a network in which any of them may go missing."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

POLL = 0.1  # seconds
_LOOK = 2.0  # seconds between looks at who is connected
_GRACE = 30.0  # seconds that a message outlives the wait for its answer, so that the wait ends first

logger = logging.getLogger("flwr")  # what Flower shows of a run


@dataclass(frozen=True)
class Connection:
    """A SuperNode from the moment it came up (``since``); what it was told before it went down is lost."""

    node: int
    since: str


def connected(grid: Grid) -> dict[int, Connection]:
    """The SuperNodes that are up."""
    up = set(grid.get_node_ids())
    infos = [info for info in grid.get_nodes() if info.node_id in up]
    return {info.node_id: Connection(info.node_id, info.last_activated_at) for info in infos}


class Sent:
    """Messages under way, each to somebody with a number of ours.

    kind: Flower's type of message.
    seconds: how long a message and its answer are of use.
    """

    def __init__(self, grid: Grid, kind: str, seconds: float, group: str = "") -> None:
        self._grid, self._kind, self._seconds, self._group = grid, kind, seconds, group
        self._to: dict[str, int] = {}

    @property
    def waiting(self) -> list[int]:
        """Those whose answers have not come."""
        return list(self._to.values())

    def send(self, to: int, node: int, content: RecordDict) -> None:
        """Send one message; nothing of it stays in memory."""
        ttl = self._seconds + _GRACE
        message = Message(content, node, self._kind, ttl=ttl, group_id=self._group)
        for number in self._grid.push_messages([message]):
            if number:  # else the SuperLink did not take it: the SuperNode has just gone
                self._to[number] = to

    def forget(self, to: int) -> None:
        """Wait no longer for an answer."""
        self._to = {number: other for number, other in self._to.items() if other != to}

    def answers(self) -> Iterator[tuple[int, Message]]:
        """Those that have come since, one at a time in memory; a second answer to a message comes as well."""
        for number, to in list(self._to.items()):
            for message in self._grid.pull_messages([number]):
                self._to.pop(number, None)
                yield to, message


@dataclass(frozen=True)
class Job:
    """Something asked of a participant.

    connection: where it was when the round began.
    content: makes the message, as often as it has to be sent.
    """

    connection: Connection
    content: Callable[[], RecordDict]


def ask(
    grid: Grid, kind: str, jobs: Mapping[int, Job], seconds: float, group: str
) -> Iterator[tuple[int, Message | str]]:
    """Ask everybody; yields (participant, its answer, or why none will come), as they come.

    A SuperNode that goes down and comes back while others are still busy is asked again. Ends when everybody
    has answered or is gone, or after so many ``seconds``.
    """
    sent = Sent(grid, kind, seconds, group)
    at = {number: job.connection for number, job in jobs.items()}
    for number, job in jobs.items():
        sent.send(number, job.connection.node, job.content())
    gone = dict.fromkeys(jobs.keys() - set(sent.waiting), "gone before it could be asked")
    end = time.monotonic() + seconds
    looked = time.monotonic()
    while sent.waiting and time.monotonic() < end:
        for number, message in sent.answers():
            if message.has_error() and message.error.code == ErrorCode.NODE_UNAVAILABLE:
                gone[number] = str(message.error.reason)
            else:
                yield number, message
        if time.monotonic() > looked + _LOOK:
            looked = time.monotonic()
            up = connected(grid)
            for number in {*gone, *sent.waiting}:
                now = up.get(at[number].node)
                if now is not None and now != at[number]:
                    logger.info("participant %d is back: asked again", number)
                    gone.pop(number, None)
                    sent.forget(number)
                    at[number] = now
                    sent.send(number, now.node, jobs[number].content())
        time.sleep(POLL)
    yield from gone.items()
    yield from ((number, f"no answer within {seconds:g} s") for number in sent.waiting)
