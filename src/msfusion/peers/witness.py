"""What a peer writes down of the rounds that are over: scores of the full model, where it is to score it, and
its records."""

from collections.abc import Callable
from typing import TypeVar

from msfusion import records
from msfusion.learn.evaluation import Evaluation
from msfusion.peers.board import Board
from msfusion.peers.chronicle import Chronicle
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.past import History
from msfusion.peers.states import Version
from msfusion.runtimes.run import Run

_REMEMBERED = 100  # rounds whose scores and own lines are kept: those that may be recorded anew
T = TypeVar("T")


class Witness:
    """Looks at every version that its peer comes to.

    score: gathers the full model of a version and scores it; raises Disturbed where the group has gone on.
        None: another peer does that.
    say: tells the user what could not be scored.
    """

    def __init__(
        self,
        run: Run,
        chronicle: Chronicle,
        board: Board,
        score: Callable[[Version], Evaluation] | None,
        say: Callable[[str], None],
    ) -> None:
        self._run, self._chronicle, self._board, self._score, self._say = run, chronicle, board, score, say
        self._looked: int | None = None  # the round up to which versions have been looked at
        self._deferred = False
        self._scores: dict[Version, Evaluation] = {}
        self._seen: dict[Version, records.Own] = {}

    def saw(self, version: Version, own: records.Own) -> None:
        """Note what the peer saw in the round that began at a version."""
        self._seen[version] = own

    def look(self, version: Version, history: History) -> bool:
        """Score what there is to score, up to a version, and record it; whether the group left the time. If
        not, both are for the next look, once."""
        whole = self._scored(version, history)
        if not whole and not self._deferred:
            self._deferred = True
            return False
        self._deferred = False
        examples = {n: state.examples for n, state in self._board.here().items()}
        self._chronicle.write(version, history, examples, self._scores, self._seen)
        self._scores = _recent(self._scores, version)
        self._seen = _recent(self._seen, version)
        return whole

    def _scored(self, version: Version, history: History) -> bool:
        """The shards of a version and of the one before it are at hand."""
        kept = {version.round - 1: Version(version.round - 1, history.parent), version.round: version}
        missed: list[int] = []
        looked = self._chronicle.on_file() if self._looked is None else self._looked
        for round in range(min(looked, version.round - 1) + 1, version.round + 1):
            if self._due(round) and kept.get(round) not in self._scores:
                if round not in kept:
                    missed.append(round)
                elif not self._succeeds(kept[round]):
                    break
            self._looked = round
        if missed:
            which = f"round {missed[0]} is" if len(missed) == 1 else f"rounds {missed[0]} to {missed[-1]} are"
            self._say(f"{which} not scored: the others have gone on")
        return self._looked == version.round

    def _due(self, round: int) -> bool:
        on_schedule = round % self._run.evaluate_every == 0 or round == self._run.rounds
        return self._score is not None and round > 0 and on_schedule

    def _succeeds(self, version: Version) -> bool:
        assert self._score is not None
        try:
            self._scores[version] = self._score(version)
        except Disturbed:
            return False
        return True


def _recent(kept: dict[Version, T], version: Version) -> dict[Version, T]:
    return {one: value for one, value in kept.items() if one.round >= version.round - _REMEMBERED}
