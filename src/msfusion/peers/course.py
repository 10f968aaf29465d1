"""Where a run stands: what follows for everyone from what was merged so far."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from msfusion.core.axes import Selection
from msfusion.core.coverage import Coverage
from msfusion.core.merge import Shift
from msfusion.core.overlap import State as Overlap
from msfusion.learn.learner import Learner, Participant
from msfusion.peers.agreement import Entry, Version
from msfusion.runtimes.setup import Setup


class Counted(Dataset[Any]):
    """Data of somebody else: all that is known of them is their number."""

    def __init__(self, examples: int) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return self._examples


class Course:
    """Follows the entries of a run's history; the same entries lead every peer to the same windows."""

    def __init__(self, setup: Setup, first: Version) -> None:
        self._setup, self._first = setup, first
        self.restart()

    def restart(self) -> None:
        """Back to version 0."""
        self.version, self.entries = self._first, tuple[Entry, ...]()
        self.overlap: Overlap = self._setup.first_overlap()
        self.learner: Learner = self._setup.learner(self.overlap)

    def go(self, version: Version, entries: Sequence[Entry]) -> None:
        """Move to a version with this history."""
        if tuple(entries[: len(self.entries)]) != self.entries:
            self.restart()
        for entry in entries[len(self.entries) :]:
            self.entries = (*self.entries, entry)
            shift = Shift(*entry.shift).ratio if entry.shift else None
            self.overlap = self._setup.next_overlap(self.overlap, len(self.entries) - 1, shift)
        self.learner = self._setup.learner(self.overlap)
        self.version = version

    def windows(self, version: Version, participant: int) -> Selection | None:
        """The units that a participant trains from a version; None unless the run stands there."""
        here, learner = self.version, self.learner
        return learner.windows(version.round, self.participant(participant)) if here == version else None

    def participant(self, number: int, examples: int = 1) -> Participant:
        """A participant as the others know it."""
        return Participant(number, Counted(examples), self._setup.widths(number))


class Coverages:
    """Coverage after every round, entry by entry."""

    def __init__(self, setup: Setup) -> None:
        self._course = Course(setup, Version(0, ""))
        self.participant = self._course.participant
        self.coverage = Coverage(setup.captured.axes, setup.parameters, setup.setting.narrowest)

    @property
    def overlap(self) -> float:
        """The overlap rate of the next round."""
        return self._course.overlap.rate

    def next(self, entry: Entry) -> tuple[Learner, dict[int, Selection]]:
        """Go one round on; the learner of that round, and who trained what in it."""
        course = self._course
        learner, round = course.learner, len(course.entries)
        windows = {
            g.participant: learner.windows(round, course.participant(g.participant)) for g in entry.given
        }
        for selection in windows.values():
            self.coverage.add(selection)
        course.go(Version(round + 1, ""), (*course.entries, entry))
        return learner, windows
