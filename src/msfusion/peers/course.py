"""Where a run stands: what follows for everyone from what was merged so far."""

from msfusion.core.axes import Selection
from msfusion.core.merge import Shift
from msfusion.core.overlap import State as Overlap
from msfusion.learn.learner import Learner
from msfusion.peers.past import History, Past
from msfusion.peers.states import Entry, Version
from msfusion.runtimes.setup import Setup


class Course:
    """Follows a run's history; the same history leads every peer to the same windows.

    stand: the version that the run is at, and how it came about.
    """

    def __init__(self, setup: Setup, first: Version) -> None:
        self._setup, self._first = setup, first
        self.stand = first, History("", first, ())
        self._overlap = setup.first_overlap()
        self.learner: Learner = setup.learner(self._overlap)

    @property
    def version(self) -> Version:
        """The version that the run is at."""
        return self.stand[0]

    def go(self, version: Version, history: History, past: Past) -> None:
        """Move to a version with this history, from the start where the present one is not near its end."""
        at, overlap, entries = self.version, self._overlap, history.since(self.version)
        if entries is None:
            at, overlap = self._first, self._setup.first_overlap()
        for round, entry in enumerate(past.entries(history) if entries is None else entries, at.round):
            overlap = overlap_after(self._setup, overlap, round, entry)
        self._overlap, self.learner = overlap, self._setup.learner(overlap)
        self.stand = version, history

    def windows(self, version: Version, participant: int) -> Selection | None:
        """The units that a participant trains from a version; None unless the run stands there."""
        here, learner = self.version, self.learner
        return learner.windows(version.round, self._setup.known(participant)) if here == version else None


class Coverages:
    """Coverage after every round, entry by entry."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._round, self._overlap = setup, 0, setup.first_overlap()
        self.coverage = setup.coverage()

    @property
    def overlap(self) -> float:
        """The overlap rate of the next round."""
        return self._overlap.rate

    def next(self, entry: Entry) -> tuple[Learner, dict[int, Selection]]:
        """Go one round on; the learner of that round, and who trained what in it."""
        setup, learner = self._setup, self._setup.learner(self._overlap)
        numbers = [given.participant for given in entry.given]
        windows = {n: learner.windows(self._round, setup.known(n)) for n in numbers}
        for selection in windows.values():
            self.coverage.add(selection)
        self._overlap = overlap_after(setup, self._overlap, self._round, entry)
        self._round += 1
        return learner, windows


def overlap_after(setup: Setup, overlap: Overlap, round: int, entry: Entry) -> Overlap:
    """The overlap rate after a round."""
    return setup.next_overlap(overlap, round, Shift(*entry.shift).ratio if entry.shift else None)
