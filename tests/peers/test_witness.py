"""What a peer scores and records when the group does not wait for it."""

from collections.abc import Mapping
from typing import Any

import pytest

from msfusion.learn.evaluation import Evaluation
from msfusion.peers.agreement import following
from msfusion.peers.board import Board
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.past import History
from msfusion.peers.states import Entry, Given, State, Version
from msfusion.peers.witness import Witness
from msfusion.runtimes.run import Run

ROUNDS = 4
AT = [Version(0, "first")]
for n in range(ROUNDS):
    AT.append(following(AT[-1], Entry((Given(0, 10, 1.0, f"d{n}"),), ())))
SCORE = Evaluation(1.0, 0.5, 10)


class Chronicle:
    """Notes which rounds are recorded with a score."""

    def __init__(self, recorded: int = 0) -> None:
        self.recorded = recorded
        self.scored: dict[int, bool] = {}

    def on_file(self) -> int:
        return self.recorded

    def write(
        self, version: Version, history: History, examples: object, scores: Mapping[Version, Any], own: object
    ) -> None:
        for round in range(self.recorded + 1, version.round + 1):
            self.scored[round] = AT[round] in scores
        self.recorded = version.round


class Peer:
    """Of a run that scores every round; gathering fails for versions that are ``gone``, once."""

    def __init__(self, recorded: int = 0, evaluate_every: int = 1) -> None:
        self.gone: set[Version] = set()
        self.said: list[str] = []
        self.chronicle = Chronicle(recorded)
        board = Board(State(0, "s", 10, AT[0], AT[0]), patience=60)
        run = Run(rounds=ROUNDS, evaluate_every=evaluate_every)
        self.witness = Witness(run, self.chronicle, board, self._score, self.said.append)  # type: ignore[arg-type]

    def _score(self, version: Version) -> Evaluation:
        if version in self.gone:
            self.gone.remove(version)
            raise Disturbed
        return SCORE

    def look(self, round: int) -> bool:
        parent = AT[round - 1].lineage if round else ""
        return self.witness.look(AT[round], History(parent, AT[0], ()))


def test_every_round_is_recorded_with_its_score() -> None:
    peer = Peer()
    assert all(peer.look(round) for round in range(ROUNDS + 1))
    assert peer.chronicle.scored == dict.fromkeys(range(1, ROUNDS + 1), True)


@pytest.mark.parametrize("disturbed", [2, ROUNDS])
def test_a_score_that_is_disturbed_is_taken_at_the_next_look(disturbed: int) -> None:
    peer = Peer()
    peer.gone = {AT[disturbed]}
    looks = [peer.look(round) for round in range(ROUNDS + 1)]
    assert looks == [round != disturbed for round in range(ROUNDS + 1)]
    peer.look(ROUNDS)
    assert peer.chronicle.scored == dict.fromkeys(range(1, ROUNDS + 1), True)
    assert not peer.said


def test_what_cannot_be_scored_is_said() -> None:
    peer = Peer()
    peer.look(1)
    peer.look(ROUNDS)
    assert peer.chronicle.scored == {1: True, 2: False, 3: True, 4: True}
    assert peer.said == ["round 2 is not scored: the others have gone on"]


def test_a_peer_that_starts_again_scores_what_it_has_not_recorded() -> None:
    peer = Peer(recorded=1)
    peer.look(3)
    assert peer.chronicle.scored == {2: True, 3: True}
    peer = Peer(recorded=3)
    peer.look(3)
    assert not peer.chronicle.scored


def test_only_what_is_due_is_scored() -> None:
    peer = Peer(evaluate_every=3)
    for round in range(ROUNDS + 1):
        peer.look(round)
    assert peer.chronicle.scored == {1: False, 2: False, 3: True, 4: True}
