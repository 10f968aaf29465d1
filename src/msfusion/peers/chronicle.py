"""A peer's records: a line for every round of the group, also for those that it was not here for."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from msfusion import records
from msfusion.core.axes import Selection
from msfusion.core.merge import Shift
from msfusion.learn.evaluation import Evaluation
from msfusion.learn.learner import Learner, Participant
from msfusion.learn.round import Trained
from msfusion.peers.agreement import following
from msfusion.peers.course import Coverages
from msfusion.peers.past import History, Past
from msfusion.peers.states import Entry, Version
from msfusion.peers.wire import Wire
from msfusion.runtimes.scribe import Described, Scribe, as_record
from msfusion.runtimes.setup import Setup


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
        self._recorded = 0
        self._unscored = True  # the last line on file, as far as is known
        self._keep: int | None = None  # rounds on file that are still true; None: all
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
            if self._writer is None:
                self._writer = self._open()
            if round >= self._recorded:
                self._writer.round(line)
                self._unscored = line["evaluation"] is None
            self._done, self._stand = round + 1, after
        self._at, self._written = version, history
        if self._unscored and (score := scores.get(version)):
            self._complete(score)
            self._unscored = False

    def on_file(self) -> int:
        """How many rounds an earlier start has recorded."""
        path = self._folder / records.FILE_NAME
        return records.count(path) if path.exists() and path.stat().st_size else 0

    def close(self) -> None:
        """Close the file."""
        self._close()

    def _turn_to(self, history: History) -> None:
        """Begin anew where the group went on from another past than the one that is recorded."""
        if history.since(self._at) is None:
            same = _common(self._past.entries(self._written), self._past.entries(history))
            if same < self._done:
                self._close()
                self._restart(keep=same)

    def _complete(self, score: Evaluation) -> None:
        """Give the last round its score, where it was recorded without."""
        *_, last = records.read(self._folder).rounds
        if last["round"] == self._done - 1 and last["evaluation"] is None:
            self._close()
            self._writer = records.Writer.resume(self._folder, self._header(), self._done - 1)
            self._writer.round({**last, "evaluation": as_record(score)})

    def _restart(self, keep: int) -> None:
        self._keep = keep
        self._done, self._stand, self._coverages = 0, self._first, Coverages(self._setup)
        self._trained = set()

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    def _open(self) -> records.Writer:
        """The file, with the rounds of an earlier start of this peer if there was one."""
        header = self._header()
        self._recorded = 0
        if rounds := self.on_file():
            self._recorded = rounds if self._keep is None else min(rounds, self._keep)
            return records.Writer.resume(self._folder, header, self._recorded)
        return records.Writer(self._folder, header)

    def _header(self) -> records.Header:
        scribe = self._scribe(self._setup.learner(self._setup.first_overlap()))
        return scribe.header(self._setup.run, self._described)

    def _line(
        self, round: int, entry: Entry, score: Evaluation | None, own: records.Own | None
    ) -> records.Round:
        overlap = self._coverages.overlap
        learner, windows = self._coverages.next(entry)
        trained = [self._merged(g.participant, windows, g.loss) for g in entry.given]
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
        known = [self._participant(n) for n in sorted(self._known)]
        return Scribe(learner, known, exchange=True, travelling=self._wire.dtype)

    def _participant(self, number: int) -> Participant:
        return self._setup.known(number, self._known[number])

    def _merged(self, number: int, windows: Mapping[int, Selection], loss: float | None) -> Trained:
        one = self._participant(number)
        return Trained(one, windows[number], loss or 0.0, first=number not in self._trained)


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
