"""What the lead of a view decides, of states as others tell them."""

import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from msfusion.peers import lead as lead_module
from msfusion.peers.agreement import duties
from msfusion.peers.board import Board
from msfusion.peers.lead import Lead
from msfusion.peers.settings import Peers
from msfusion.peers.states import Check, Given, Held, Offer, State, Version, View
from msfusion.peers.teller import Teller
from msfusion.runtimes.run import Run

ROUNDS = 5
AT, LAST = Version(2, "two"), Version(ROUNDS, "last")
HOLDERS = [(0, 1), (1, 2), (2, 0)]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(lead_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Table:
    """A lead, 0, and two others who have what they should."""

    def __init__(self, at: Version = AT, drawn: Iterable[int] = (0, 1, 2)) -> None:
        self.view = View(1, 0, {n: f"s{n}" for n in range(3)}, at)
        duty = duties(HOLDERS, self.view.members)
        self.states = {
            n: State(n, f"s{n}", 10, at, at, {at.text: Held("before", frozenset(duty[n]))}, self.view)
            for n in range(3)
        }
        self.said: list[str] = []
        self.board = Board(self.states[0], patience=60)
        self.lead = Lead(
            Run(rounds=ROUNDS),
            Peers(deadline=10.0),
            lambda round: sorted(drawn),
            self.board,
            Teller(self.board, [], self.said.append),
        )

    def says(self, number: int, **changes: object) -> None:
        if number == 0:
            self.board.update(**changes)
            self.states[0] = self.board.own
        else:
            self.states[number] = replace(self.states[number], **changes)

    def contributes(self, number: int) -> None:
        """Its contribution has been looked at by all homes."""
        self.says(number, offer=Offer(AT, Given(number, 10, 1.0, f"d{number}")))
        for home in self.states:
            checks = {**self.states[home].checks, number: Check(f"d{number}", 1.0, 1)}
            self.says(home, checks=checks)

    def acts(self) -> str:
        return self.lead.act(self.view, self.states, HOLDERS)

    @property
    def merged(self) -> list[int]:
        assert self.board.own.decision
        return [given.participant for given in self.board.own.decision.entry.given]

    @property
    def left(self) -> list[tuple[int, str]]:
        assert self.board.own.decision
        return [(one.participant, one.reason) for one in self.board.own.decision.entry.left]


def test_a_round_ends_when_all_who_are_drawn_have_contributed(clock: Clock) -> None:
    table = Table(drawn=[0, 2])
    table.contributes(0)
    assert table.acts() == "waits"
    table.contributes(2)
    assert table.acts() == "decided"
    assert (table.merged, table.left) == ([0, 2], [])


def test_who_is_late_is_left_out(clock: Clock) -> None:
    table = Table()
    table.contributes(1)
    assert table.acts() == "waits"
    clock.now += 11
    assert table.acts() == "decided"
    assert table.merged == [1]
    assert table.left == [(n, "contribution came after the deadline") for n in (0, 2)]


def test_a_round_in_which_nobody_who_was_drawn_delivers_ends(clock: Clock) -> None:
    table = Table(drawn=[1])
    assert table.acts() == "waits"
    clock.now += 11
    assert table.acts() == "decided"
    assert (table.merged, table.left) == ([], [(1, "contribution came after the deadline")])


def test_where_all_are_drawn_the_first_is_waited_for(clock: Clock) -> None:
    table = Table()
    assert table.acts() == "waits"
    clock.now += 11
    assert table.acts() == "waits"
    assert table.said == ["nobody has ended round 2 within 10 s: waiting for the first"]
    table.contributes(1)
    assert table.acts() == "decided"


@pytest.mark.parametrize("slow", [0, 1])
def test_a_lead_that_is_slow_itself_does_not_begin_anew(clock: Clock, slow: int) -> None:
    table = Table()
    table.says(slow, holds={})
    assert table.acts() == "waits"
    clock.now += 11
    assert table.acts() == ("waits" if slow == 0 else "leaves behind")
    assert table.lead.sits_out(1, AT) == (slow == 1)


@pytest.mark.parametrize(("at", "again"), [(AT, False), (Version(ROUNDS - 1, "x"), False), (LAST, True)])
def test_who_is_left_behind_is_taken_in_after_the_last_round(clock: Clock, at: Version, again: bool) -> None:
    table = Table(Version(ROUNDS - 1, "x") if again else at)
    table.says(1, holds={})
    table.acts()
    clock.now += 11
    assert table.acts() == "leaves behind"
    assert table.lead.sits_out(1, at) != again
