"""Values over the rounds of a run, and lines over the seeds of a group."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from msfusion.records import Round, Run
from msfusion.report.numbers import Metric

Track = dict[int, float]  # round -> value, ascending


@dataclass(frozen=True)
class Line:
    """Means over seeds with their least and greatest value, at the rounds that all seeds have."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def line(runs: Sequence[Run], x: Callable[[Run], Track], y: Callable[[Run], Track]) -> Line:
    """`y` over `x`. A round that one seed lacks is left out: a mean over fewer seeds would jump there."""
    xs, ys = [x(run) for run in runs], [y(run) for run in runs]
    common = [r for r in ys[0] if all(r in track for track in xs + ys)]
    values = [[track[r] for track in ys] for r in common]
    return Line(
        x=tuple(statistics.fmean(track[r] for track in xs) for r in common),
        mean=tuple(statistics.fmean(v) for v in values),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
    )


def rounds(run: Run) -> Track:
    """The round's own number."""
    return {r["round"]: r["round"] for r in run.rounds}


def field(name: Literal["coverage", "overlap", "shift", "train_loss"]) -> Callable[[Run], Track]:
    """One number of each round, where there is one."""
    return lambda run: {r["round"]: value for r in run.rounds if (value := r[name]) is not None}


def metric(name: Metric) -> Callable[[Run], Track]:
    """The accuracy or loss of what the method trains in the rounds that ended with an evaluation."""
    return lambda run: {r["round"]: value for r in run.rounds if (value := _measured(r, name)) is not None}


def _measured(record: Round, name: Metric) -> float | None:
    return None if record["evaluation"] is None else record["evaluation"][name]


def spent(name: Literal["flops", "bytes"]) -> Callable[[Run], Track]:
    """FLOPs or bytes so far, as the mean over all participants of the run."""

    def track(run: Run) -> Track:
        participants = max(1, run.participants)
        totals = accumulate(r[name] or 0 for r in run.rounds)
        return {r["round"]: t / participants for r, t in zip(run.rounds, totals, strict=True)}

    return track


def last(track: Track) -> float | None:
    """The value of the last round that has one."""
    return track[max(track)] if track else None


def varies(track: Track) -> bool:
    """Whether a chart over rounds would show more than a level line."""
    return bool(track) and max(track.values()) > min(track.values())
