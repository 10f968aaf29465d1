"""The report's tables as text, row by row."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from msfusion.records import Header, ParticipantFacts, Run
from msfusion.report.ends import diverged, ended, lengths
from msfusion.report.numbers import NOTHING, Metric, count, finals, many, mean_max, percent, si, span
from msfusion.report.runs import Group
from msfusion.report.series import field, last, metric
from msfusion.settings import flat

Facts = list[tuple[str, str]]
COSTS = (
    "participant",
    "examples",
    "share of the model",
    "parameters",
    "FLOPs per step",
    "memory",
    "bytes per round",
)
_DROPOUTS = 50  # a report is not a log


@dataclass(frozen=True)
class Row:
    """One method of the summary: column -> text, in the order of the columns."""

    label: str
    cells: dict[str, str]


def summary(groups: Sequence[Group], name: Metric) -> list[Row]:
    """One row per group, the best mean of the final evaluations first; equals and the unscored by label."""
    wanted = lengths(groups)
    ranked = sorted(groups, key=lambda group: _rank(group, name, wanted[group.label]))
    return [_row(group, name, wanted[group.label]) for group in ranked]


def finals_of(group: Group, name: Metric, rounds: int) -> list[float]:
    """Each seed's last evaluation, of the seeds that have so many rounds and did not diverge."""
    scores = (last(metric(name)(run)) for run in ended(group, rounds))
    return [score for score in scores if score is not None]


def _rank(group: Group, name: Metric, rounds: int) -> tuple[bool, float, str]:
    scores = finals_of(group, name, rounds)
    mean = statistics.fmean(scores) if scores else 0.0
    return not scores, -mean if name == "accuracy" else mean, group.label


def _row(group: Group, name: Metric, rounds: int) -> Row:
    return Row(
        group.label,
        {
            f"final {name}": _final(group, name, rounds),
            "coverage at the end": _coverage(group, rounds),
            "share of the model": _over(group, lambda p: p["share"], percent),
            "parameters": _over(group, lambda p: p["parameters"], count),
            "FLOPs per step": _over(group, lambda p: p["flops_per_step"], lambda v: si(v, "FLOP")),
            "bytes per round": _over(group, lambda p: p["bytes_per_round"], lambda v: si(v, "B")),
            "rounds": span([len(run.rounds) for run in group.runs]),
        },
    )


def _final(group: Group, name: Metric, rounds: int) -> str:
    early = sum(len(run.rounds) < rounds and not diverged(run) for run in group.runs)
    if not any(run.rounds for run in group.runs):
        early = 0  # all of them are about to start
    lost = {"diverged": sum(map(diverged, group.runs)), f"before round {rounds}": early}
    over = rounds > 0 and bool(ended(group, rounds))
    return finals(finals_of(group, name, rounds), name, lost, len(group.runs), over=over)


def _over(
    group: Group, value: Callable[[ParticipantFacts], float | None], text: Callable[[float], str]
) -> str:
    values = [value(p) for run in group.runs for p in run.header["participants"]]
    return mean_max([v for v in values if v is not None], text)


def _coverage(group: Group, rounds: int) -> str:
    ends = [
        end for run in ended(group, rounds) or group.runs if (end := last(field("coverage")(run))) is not None
    ]
    return percent(statistics.fmean(ends)) if ends else NOTHING


def costs(header: Header) -> list[tuple[str, ...]]:
    """What each participant has and pays, in the columns of `COSTS`."""
    return [
        (
            str(p["participant"]),
            count(p["examples"]),
            percent(p["share"]),
            count(p["parameters"]),
            si(p["flops_per_step"], "FLOP"),
            si(p["memory_bytes"], "B"),
            si(p["bytes_per_round"], "B"),
        )
        for p in header["participants"]
    ]


def origin(group: Group) -> Facts:
    """Seeds, model, versions, commit and hardware, with every value that occurs among the seeds."""
    headers = [run.header for run in group.runs]
    model = headers[0]["model"]
    rounds = (record for run in group.runs for record in run.rounds)
    versions = [*(h["versions"] for h in headers), *(r["versions"] for r in rounds if "versions" in r)]
    packages = dict.fromkeys(package for each in versions for package in each)
    return [
        ("seeds", ", ".join(str(h["seed"]) for h in headers)),
        ("model", f"{model['name']}, {count(model['parameters'])} parameters"),
        ("axes", ", ".join(f"{axis}: {many(units, 'unit')}" for axis, units in model["axes"].items())),
        *((package, _each(one.get(package, NOTHING) for one in versions)) for package in packages),
        ("commit", _each(h["commit"] or "not recorded" for h in headers)),
        ("hardware", _each(h["hardware"] for h in headers)),
    ]


def _each(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def settings(run: Run) -> Facts:
    """The configuration with dotted names."""
    return list(flat(run.header["config"]).items())


def dropouts(group: Group) -> list[tuple[str, str, str, str]]:
    """Who was not merged when and why: seed, round, participant, reason; the last row counts the rest."""
    rows = [
        (str(run.header["seed"]), str(r["round"]), str(d["participant"]), d["reason"])
        for run in group.runs
        for r in run.rounds
        for d in r["dropped"]
    ]
    left = len(rows) - _DROPOUTS
    return rows[:_DROPOUTS] + ([("…", "…", "…", f"and {left} more")] if left > 0 else [])
