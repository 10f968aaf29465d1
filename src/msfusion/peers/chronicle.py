"""A peer's records: a line for every round of the group, also for those that it was not here for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal

from msfusion import records
from msfusion.core.axes import Selection
from msfusion.core.merge import Shift
from msfusion.learn.evaluation import Evaluation
from msfusion.learn.learner import Learner
from msfusion.learn.round import Trained
from msfusion.peers.agreement import following
from msfusion.peers.course import Coverages
from msfusion.peers.past import History, Past
from msfusion.peers.states import Entry, Given, Version
from msfusion.peers.wire import Wire
from msfusion.runtimes.scribe import Described, Scribe, as_record
from msfusion.runtimes.setup import Setup

_SAME: tuple[Literal["round", "participants", "train_loss"], ...] = ("round", "participants", "train_loss")
"""What tells the rounds of two pasts apart in their lines."""


class Chronicle:
    """Writes ``records.jsonl`` in a peer's folder, from the history that all peers share.

    past: the rounds of that history that lie in blocks.
    wire: how values travel.
    """

    def __init__(
        self,
        folder: Path,
        setup: Setup,
        described: Described,
        first: Version,
        past: Past,
        wire: Wire | None = None,
    ) -> None:
        self._wire = wire or Wire("float32")
        self._folder, self._setup, self._described, self._past = folder, setup, described, past
        self._writer: records.Writer | None = None
        self._first = self._at = self._stand = first
        self._written = History("", first, ())
        self._known: dict[int, int] = {}
        self._trained: set[int] = set()
        self._before: Iterator[records.Round] | None = None  # on file, and not compared yet; None: all
        self._unscored = True  # the last line on file, as far as is known
        self._done, self._coverages = 0, Coverages(setup)

    def write(
        self,
        version: Version,
        history: History,
        examples: Mapping[int, int],
        scores: Mapping[Version, Evaluation],
        own: Mapping[Version, records.Own],
    ) -> None:
        """Record the rounds that led to a version and are not recorded yet.

        examples: of the participants that are known.
        scores: version -> score of the full model, where this peer has one; the last round is given one also
            where it was recorded without.
        own: version -> what this peer saw of the round that began there.
        """
        self._turn_to(history)
        for entry in self._past.entries(history, self._done):
            self._known |= {given.participant: given.examples for given in entry.given}
        self._known |= examples
        for round, entry in enumerate(self._past.entries(history, self._done), self._done):
            after = following(self._stand, entry)
            line = self._line(round, entry, scores.get(after), own.get(self._stand))
            if not self._stands(line):
                self._writer = self._writer or self._open(round)
                self._writer.round(line)
                self._unscored = line["evaluation"] is None
            self._done, self._stand = round + 1, after
        self._at, self._written = version, history
        if self._unscored and (score := scores.get(version)):
            self._complete(score)
            self._unscored = False

    def on_file(self) -> int:
        """How many rounds an earlier start has recorded; what a crash spoiled behind them is cut off."""
        return records.cut(self._folder)

    def close(self) -> None:
        """Close the file."""
        self._close()

    def _turn_to(self, history: History) -> None:
        """Begin anew where the group went on from another past than the one that is recorded."""
        if history.since(self._at) is None:
            same = _common(self._past.entries(self._written), self._past.entries(history))
            if same < self._done:
                self._close()
                self._restart()

    def _complete(self, score: Evaluation) -> None:
        """Give the last round its score, where it was recorded without."""
        *_, last = records.read(self._folder).rounds
        if last["round"] == self._done - 1 and last["evaluation"] is None:
            self._close()
            self._writer = records.Writer.resume(self._folder, self._header(), self._done - 1)
            self._writer.round({**last, "evaluation": as_record(score)})

    def _restart(self) -> None:
        self._before = None
        self._done, self._stand, self._coverages = 0, self._first, Coverages(self._setup)
        self._trained = set()

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    def _stands(self, line: records.Round) -> bool:
        """Whether a round is on file already. The first that is there otherwise, of a past that the group did
        not go on from, and all behind it are not."""
        if self._writer is not None:
            return False
        if self._before is None:
            self._before = records.rounds(self._folder) if self.on_file() else iter(())
        before = next(self._before, None)
        if before is None or any(before[key] != records.finite(line[key]) for key in _SAME):
            return False
        self._unscored = before["evaluation"] is None
        return True

    def _open(self, rounds: int) -> records.Writer:
        """The file, behind so many rounds of an earlier start."""
        header, resumes = self._header(), self.on_file()
        resume = records.Writer.resume
        return resume(self._folder, header, rounds) if resumes else records.Writer(self._folder, header)

    def _header(self) -> records.Header:
        scribe = self._scribe(self._setup.learner(self._setup.first_overlap()))
        return scribe.header(self._setup.run, self._described)

    def _line(
        self, round: int, entry: Entry, score: Evaluation | None, own: records.Own | None
    ) -> records.Round:
        overlap = self._coverages.overlap
        learner, windows = self._coverages.next(entry)
        trained = [self._merged(given, windows) for given in entry.given]
        line = self._scribe(learner).round(
            round,
            trained,
            coverage=self._coverages.coverage.share(),
            overlap=overlap,
            shift=Shift(*entry.shift).ratio if entry.shift else None,
            evaluation=score,
            seconds=entry.seconds,
        )
        self._trained |= windows.keys()
        line["dropped"] = [{"participant": one.participant, "reason": one.reason} for one in entry.left]
        if own is not None:
            line["own"] = own
        return line

    def _scribe(self, learner: Learner) -> Scribe:
        known = [self._setup.known(n, self._known[n]) for n in sorted(self._known)]
        return Scribe(learner, known, self._setup.plans, exchange=True, travelling=self._wire.dtype)

    def _merged(self, given: Given, windows: Mapping[int, Selection]) -> Trained:
        number = given.participant
        one = self._setup.known(number, given.examples)
        return Trained(one, windows[number], given.loss or 0.0, first=number not in self._trained)


def _common(first: Iterable[Entry], second: Iterable[Entry]) -> int:
    """In how many rounds from the first on both have merged the same."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].given == pair[1].given, pairs))


def own_line(number: int, score: Evaluation, sent: int, received: int, here: Sequence[int]) -> records.Own:
    """What a peer saw of a round."""
    return {
        "participant": number,
        "score": as_record(score),
        "sent": sent,
        "received": received,
        "here": list(here),
    }
