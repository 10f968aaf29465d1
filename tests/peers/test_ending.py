"""What a peer does once all rounds are done."""

import threading
import time
from dataclasses import dataclass, replace

import pytest

from msfusion.peers.board import Board
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.ending import Ending
from msfusion.peers.settings import Peers
from msfusion.peers.states import State, Version, View

LAST = Version(3, "last")
VIEW = View(1, 0, {0: "s0", 1: "s1"}, LAST)


@dataclass
class Member:
    error: BaseException | None = None


def state(number: int, view: View | None = VIEW) -> State:
    return State(number, f"s{number}", 10, LAST, LAST, view=view)


def ending(board: Board, member: Member | None = None, *, late: bool = False, **peers: float) -> Ending:
    return Ending(Peers(**peers), 2, LAST.round, board, member or Member(), late=late)  # type: ignore[arg-type]


def table(*others: State, view: View | None = VIEW) -> Board:
    board = Board(state(0, view), patience=60)
    for other in others:
        board.arrived(other.number, other.session)
        board.hear(other)
    return board


def seconds(board: Board, *, late: bool = False, **peers: float) -> float:
    """How long a peer stays."""
    start = time.monotonic()
    ending(board, late=late, **peers).linger(lambda: 0)
    assert board.own.done
    return time.monotonic() - start


def test_a_peer_stays_until_the_others_need_nothing() -> None:
    board = table(state(1))
    later = threading.Timer(1.0, lambda: board.hear(replace(state(1), done=True)))
    later.start()
    assert seconds(board, deadline=60.0) >= 1.0


def test_a_peer_does_not_stay_for_who_asks_for_nothing() -> None:
    assert 1.0 <= seconds(table(state(1)), deadline=1.0) < 30


@pytest.mark.parametrize(("late", "least"), [(False, 0.0), (True, 1.0)])
def test_a_peer_that_came_when_all_was_done_waits_to_be_found(late: bool, least: float) -> None:
    assert least <= seconds(table(), late=late, settle=1.0, deadline=60.0) < 30


def test_what_is_disturbed_is_done_anew() -> None:
    calls: list[int] = []

    def last() -> bool:
        calls.append(0)
        if len(calls) == 1:
            raise Disturbed
        return len(calls) == 3

    ending(table()).finish(last, lambda: None, wanted=True)
    assert len(calls) == 3


def test_only_a_peer_that_needs_others_waits_for_a_view() -> None:
    board, waited = table(view=None), []
    ending(board, settle=0.2).finish(lambda: True, lambda: waited.append(0), wanted=False)

    def waits() -> None:
        waited.append(1)
        if waited.count(1) == 2:
            board.update(view=VIEW)

    ending(board, settle=0.2).finish(lambda: True, waits, wanted=True)
    assert waited.count(1) == 2


def test_an_error_of_the_group_ends_it() -> None:
    with pytest.raises(OSError, match="full"):
        ending(table(view=None), Member(OSError("full"))).finish(lambda: True, lambda: None, wanted=True)
