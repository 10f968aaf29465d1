"""Who is missed, and for how long."""

from dataclasses import replace

from msfusion.peers.board import Board
from msfusion.peers.splits import Splits
from msfusion.peers.states import State, Version

FIRST = Version(0, "first")


def state(number: int, *hears: int) -> State:
    return State(number, f"s{number}", 1, FIRST, FIRST, hears=frozenset(hears))


def test_missed_is_who_is_heard_without_a_token_and_whom_others_hear() -> None:
    board = Board(state(0), patience=60)
    assert board.missed() == set()
    board.arrived(1, "s1")
    assert board.missed() == set()  # a token alone: it may be frozen
    board.hear(state(1, 0, 1, 2))
    assert board.missed() == {2}
    board.hear(state(3))
    assert board.missed() == {2, 3}
    board.arrived(3, "s3")
    board.arrived(2, "s2")
    board.hear(state(2, 0, 1, 2, 3))
    assert board.missed() == set()
    board.unlinked()
    assert board.missed() == {1, 2, 3}


def test_who_is_silent_for_long_or_gone_misses_nobody() -> None:
    board = Board(state(0), patience=-1.0)
    board.arrived(1, "s1")
    board.hear(state(1, 0, 1, 2))
    assert board.missed() == set()
    board = Board(replace(state(0), hears=frozenset({0})), patience=60)
    board.hear(state(1, 0, 1, 2))
    assert board.missed() == {1}  # what it hears is of no use as long as there is no link to it


def test_the_higher_of_two_acts_first_and_ever_later() -> None:
    splits = Splits(own=2, wait=10.0)
    assert splits.overdue({1}, 100.0) == []
    assert splits.overdue({1}, 110.0) == []
    assert splits.overdue({1}, 110.5) == [1]
    assert splits.overdue({1}, 111.0) == []
    assert splits.overdue({1}, 131.0) == []
    assert splits.overdue({1}, 131.5) == [1]
    assert splits.overdue(set(), 140.0) == []
    assert splits.overdue({1, 3}, 150.0) == []
    assert splits.overdue({3}, 165.0) == []  # of the two, 3 acts
    assert splits.overdue({1, 3}, 171.0) == [3]
    assert splits.overdue({1}, 172.0) == []


def test_the_wait_does_not_grow_for_ever() -> None:
    splits, now, waited = Splits(own=2, wait=10.0), 0.0, []
    splits.overdue({1}, now)
    since = now
    while len(waited) < 12:
        now += 1.0
        if splits.overdue({1}, now):
            waited.append(now - since)
            since = now
    assert waited == sorted(waited)
    assert waited[-1] <= 602.0
