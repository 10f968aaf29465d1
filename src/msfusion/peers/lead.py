"""What the lead of a view decides: what is merged in a round, and who is left behind."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from msfusion.peers import agreement
from msfusion.peers.board import Board
from msfusion.peers.settings import Peers
from msfusion.peers.states import Left, States, Version, View
from msfusion.peers.teller import Teller
from msfusion.runtimes.run import Run

Outcome = Literal["waits", "decided", "leaves behind"]


@dataclass
class Clock:
    """Since when the lead has seen something; monotonic seconds."""

    what: object = None
    since: float = 0.0

    def passed(self, what: object) -> float:
        """Seconds since ``what`` began, which is now where it is new."""
        if what != self.what:
            self.what, self.since = what, time.monotonic()
        return time.monotonic() - self.since


class Lead:
    """A member in so far as it leads.

    expected: round -> participants whose contributions belong into it.
    """

    def __init__(
        self, run: Run, peers: Peers, expected: Callable[[int], list[int]], board: Board, tell: Teller
    ) -> None:
        self._run, self._peers, self._expected = run, peers, expected
        self._board, self._tell = board, tell
        self._placing, self._opened, self._checking, self._staging = Clock(), Clock(), Clock(), Clock()
        self._away: dict[int, int] = {}

    def sits_out(self, number: int, at: Version) -> bool:
        """Whether a peer that did not keep up is not taken in again yet. After the last round it is: there is
        nothing left that it could hold up."""
        return at.round < self._run.rounds and self._away.get(number, -1) >= at.round

    def renews(self, view: View, states: States) -> bool:
        """Whether another view is wanted though nobody left: to take someone in between two rounds, or to go
        on with those who are further."""
        own = self._board.own
        if agreement.decided(view, own.at, own):
            return False
        if any(s.committed.round > own.at.round for s in states.values()):
            return True
        return not agreement.offers(view, own.at, states) and any(
            n not in view.members and not self.sits_out(n, own.at) for n in states
        )

    def act(self, view: View, states: States, holders: list[tuple[int, ...]]) -> Outcome:
        """Decide what is merged, when all is here or the deadline has passed; leave behind who hangs, whom
        the next view is to do without."""
        own = self._board.own
        now = (view.id, own.at)
        if decided := agreement.decided(view, own.at, own):
            target = agreement.following(own.at, decided.entry)
            duty = agreement.duties(holders, view.members)
            slow = {n for n in view.members if not duty[n] <= agreement.held(states[n], target)}
            return self._without(slow, "wrote no shards", self._staging.passed(now))
        ready = agreement.placed(view, own.at, states, holders)
        if len(ready) < len(view.members):
            return self._without(set(view.members) - ready, "was not ready", self._placing.passed(now))
        if own.at.round == self._run.rounds:
            return "waits"
        return self._decide(view, states, holders, self._opened.passed(now))

    def _without(self, slow: set[int], why: str, waited: float) -> Outcome:
        """Leave behind who is slow; not oneself, as the others would begin the round anew and wait again."""
        slow = slow - {self._board.own.number}
        if not slow or waited <= self._peers.deadline:
            return "waits"
        for n in slow:
            self._away[n] = self._board.own.at.round + 1
            self._tell.slow(n, why, self._peers.deadline)
        return "leaves behind"

    def _decide(self, view: View, states: States, holders: list[tuple[int, ...]], waited: float) -> Outcome:
        own, homes = self._board.own, {home for home, *_ in holders}
        found = agreement.checked(view, own.at, states, homes)
        expected = self._expected(own.at.round)
        failed = agreement.failures(view, own.at, states)
        awaited = [n for n in expected if n in view.members and n not in found and n not in failed]
        if awaited and not found and (offered := agreement.offers(view, own.at, states)):
            since = self._checking.passed((view.id, own.at, *offered))
            idle = agreement.idle(view, own.at, states, homes)
            return self._without(idle, "looked at no contributions", since)
        if awaited and waited <= self._peers.deadline:
            return "waits"
        if awaited and not found and view.members.keys() <= set(expected):
            self._tell.nobody(own.at, self._peers.deadline)
            return "waits"
        found = {n: checks for n, checks in found.items() if n in expected}
        good, bad = agreement.accepted(found, self._peers.norm_bound)
        late = [Left(n, "contribution came after the deadline") for n in awaited]
        gone = [Left(n, "not here") for n in expected if n not in view.members]
        wrong = [Left(n, reason) for n, reason in failed.items() if n in expected]
        left = sorted([*bad, *wrong, *late, *gone], key=lambda one: one.participant)
        self._board.update(decision=agreement.decision(view, own.at, states, good, left, waited))
        return "decided"
