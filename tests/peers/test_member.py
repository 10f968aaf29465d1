"""What a peer does for the group, step by step, of states as others tell them."""

from typing import Any

import pytest

from msfusion.peers.board import Board
from msfusion.peers.member import Member
from msfusion.peers.settings import Peers
from msfusion.peers.states import State, Version, View
from msfusion.peers.stock import Stock
from msfusion.peers.teller import Teller
from msfusion.runtimes.run import Run

FIRST, TWO = Version(0, "first"), Version(2, "two")
THREE = {n: f"s{n}" for n in range(3)}
NOTHING: Any = None
SHARDS: Any = ["shard"]  # their number is all that is asked for
BEGUN = "waiting for 0, 1: the run goes on with more than half of those who began it"


class Alone:
    """Participant 2 of three, with no link to the others; notes what it says."""

    def __init__(self, view: View | None, last: Version = FIRST, **settings: Any) -> None:
        board = Board(State(2, "s2", 10, FIRST, FIRST, view=view), patience=60)
        for n in (0, 1):
            board.hear(State(n, f"s{n}", 10, last, last))
        self.said: list[str] = []
        self.member = Member(
            Run(),
            Peers(**settings),
            len(THREE),
            lambda round: list(THREE),
            Stock(FIRST, SHARDS, NOTHING, NOTHING, NOTHING, NOTHING),
            board,
            Teller(board, [], self.said.append),
        )

    def waits(self) -> bool:
        return not self.member._step()


@pytest.mark.parametrize(
    ("alone", "said"),
    [
        (Alone(None), "waiting for 2 of 3 participants"),
        (Alone(None, start=2), "waiting for 1 of 2 participants"),
        (Alone(View(1, 0, THREE, FIRST)), BEGUN),
        (Alone(View(1, 0, THREE, FIRST), start=1), BEGUN),
        (Alone(View(4, 0, THREE, TWO), TWO), BEGUN),
        (Alone(None, TWO, start=1), BEGUN),
    ],
    ids=["first", "start", "cut off", "cut off though one may start", "taken in later", "left behind later"],
)
def test_a_peer_that_is_cut_off_before_its_first_commit_waits(alone: Alone, said: str) -> None:
    assert alone.waits()
    assert alone.said == [said]
