"""A peer's records: a line for every round of the group, also for those that it was not here for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msfusion import records
from msfusion.core.axes import Selection
from msfusion.core.merge import Shift
from msfusion.learn.learner import Learner, Participant
from msfusion.learn.local import Evaluation
from msfusion.learn.round import Trained
from msfusion.peers.agreement import Entry
from msfusion.peers.course import Coverages
from msfusion.runtimes.facts import run_facts
from msfusion.runtimes.scribe import Scribe, as_record
from msfusion.runtimes.setup import Setup


@dataclass(frozen=True)
class Described:
    """What a run is called in its records.

    settings: the configuration.
    model: name of the model.
    metric: what the full model is judged by.
    """

    settings: Mapping[str, Any]
    model: str
    metric: Any


class Chronicle:
    """Writes ``records.jsonl`` in a peer's folder, from the history that all peers share."""

    def __init__(self, folder: Path, setup: Setup, described: Described) -> None:
        self._folder, self._setup, self._described = folder, setup, described
        self._writer: records.Writer | None = None
        self._written: tuple[Entry, ...] = ()
        self._trained: set[int] = set()
        self._recorded = 0
        self._keep: int | None = None  # rounds on file that are still true; None: all
        self._coverages = Coverages(setup)

    def write(
        self,
        entries: Sequence[Entry],
        examples: Mapping[int, int],
        scores: Mapping[int, Evaluation],
        own: Mapping[int, records.Own],
    ) -> None:
        """Record the rounds that are not recorded yet.

        examples: of the participants that are known.
        scores: round -> score of the full model after it, where this peer has one.
        own: round -> what this peer saw of it.
        """
        if tuple(entries[: len(self._written)]) != self._written:  # the group went on from another past
            self._close()
            self._restart(keep=_common(self._written, entries))
        known = {g.participant: g.examples for entry in entries for g in entry.given} | dict(examples)
        for round in range(len(self._written), len(entries)):
            line = self._line(round, entries[round], known, scores.get(round), own.get(round))
            if self._writer is None:
                self._writer = self._open(known, round)
            if round >= self._recorded:
                self._writer.round(line)
            self._written = tuple(entries[: round + 1])

    def close(self) -> None:
        """Close the file."""
        self._close()

    def _restart(self, keep: int) -> None:
        self._keep = keep
        self._coverages = Coverages(self._setup)
        self._written, self._trained = (), set()

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    def _open(self, examples: Mapping[int, int], round: int) -> records.Writer:
        """The file, with the rounds of an earlier start of this peer if there was one."""
        path = self._folder / records.FILE_NAME
        header = self._header(examples)
        self._recorded = 0
        if path.exists() and path.stat().st_size:
            rounds = len(records.read(path).rounds)
            self._recorded = rounds if self._keep is None else min(rounds, self._keep)
            return records.Writer.resume(self._folder, header, self._recorded)
        return records.Writer(self._folder, header)

    def _header(self, examples: Mapping[int, int]) -> records.Header:
        learner = self._setup.learner(self._setup.first_overlap())
        who = [self._coverages.participant(n, count) for n, count in sorted(examples.items())]
        scribe = Scribe(learner, who, exchange=True)
        return {
            "kind": "header",
            "format": records.FORMAT,
            "method": self._setup.run.method,
            "seed": self._setup.run.seed,
            "config": json.loads(json.dumps(self._described.settings)),
            **run_facts(),
            "metric": self._described.metric,
            **scribe.facts(self._described.model, self._setup.captured.axes),
        }

    def _line(
        self,
        round: int,
        entry: Entry,
        examples: Mapping[int, int],
        score: Evaluation | None,
        own: records.Own | None,
    ) -> records.Round:
        overlap = self._coverages.overlap
        learner, windows = self._coverages.next(entry)
        trained = [self._merged(g.participant, examples, windows, g.loss) for g in entry.given]
        line = self._scribe(learner, examples).round(
            round,
            trained,
            coverage=self._coverages.coverage.summary().share,
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

    def _scribe(self, learner: Learner, examples: Mapping[int, int]) -> Scribe:
        who: list[Participant] = [self._coverages.participant(n, c) for n, c in sorted(examples.items())]
        return Scribe(learner, who, exchange=True)

    def _merged(
        self, number: int, examples: Mapping[int, int], windows: Mapping[int, Selection], loss: float | None
    ) -> Trained:
        one = self._coverages.participant(number, examples[number])
        return Trained(one, windows[number], loss or 0.0, first=number not in self._trained)


def _common(first: Sequence[Entry], second: Sequence[Entry]) -> int:
    """Length of the beginning that both share."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))


def own_line(number: int, score: Evaluation, sent: int, received: int, here: Sequence[int]) -> records.Own:
    """What a peer saw of a round."""
    return {
        "participant": number,
        "score": as_record(score),
        "sent": sent,
        "received": received,
        "here": list(here),
    }
