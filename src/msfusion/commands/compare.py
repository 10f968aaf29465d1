"""``msfusion compare``: several methods over several seeds."""

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from json import dumps as json_text
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from msfusion import records
from msfusion.commands import tuning
from msfusion.commands.idle import warn_of_idle, warn_of_variants
from msfusion.commands.output import emit, progress, require_positive, table
from msfusion.commands.parallel import Task, run_all
from msfusion.commands.training import note, stoppable
from msfusion.commands.tuning import Grid
from msfusion.config import Config, load, read_table
from msfusion.errors import UserError
from msfusion.learn.methods import get_method
from msfusion.report import check_page_at, write_report
from msfusion.report.ends import diverged
from msfusion.report.numbers import finals, many, mean_and_most, percent, si
from msfusion.runtimes.journal import changed

_COSTS = ("share", "flops_per_step", "bytes_per_round", "memory_bytes")
_WIDEST = "The cost of fjord is that of all that a participant affords; it may draw less."


@dataclass(frozen=True)
class Comparison:
    """Methods and seeds that are compared under the same settings.

    tune: values that every method is tried with, by a run of one more seed each; its best is then taken.
    """

    preset: str
    settings: Mapping[str, Any]
    methods: Sequence[str]
    seeds: int
    tune: Grid | None = None

    def __post_init__(self) -> None:
        require_positive(seeds=self.seeds)
        own = {"method": "--methods a,b,c", "seed": "--seeds K"}
        for key, option in (own | ({self.tune.key: "--tune"} if self.tune else {})).items():
            if key in self.settings:
                raise UserError(
                    f"expected {option} for a comparison, got --set {key}={self.settings[key]}; use {option} "
                    "instead"
                )
        if (seed := read_table(self.preset).get("seed", 0)) != 0:
            warnings.warn(
                f"seed = {seed} of {self.preset} has no effect: a comparison runs seeds 0 to --seeds less 1",
                stacklevel=2,
            )
        for method in self.methods:
            get_method(method)
        if len(set(self.methods)) < len(self.methods):
            raise UserError(f"expected every method once, got {', '.join(self.methods)}")

    def config(self, method: str, seed: int, more: Mapping[str, Any]) -> Config:
        """Of one run; ``more`` settings over those of all."""
        return load(self.preset, {**self.settings, **more, "method": method, "seed": seed})


def run(comparison: Comparison, *, out: Path | None, resume: bool, jobs: int, json: bool) -> None:
    """Run every method with every seed; print one table and, into ``out``, write one report."""
    if out is None and resume:
        raise UserError("expected the folder of the runs (--out DIR) for --resume, got none")
    if out is not None:
        check_page_at(out / "report.html")
    _warn(comparison)
    keep = nullcontext(out) if out is not None else TemporaryDirectory()
    with stoppable(out), keep as kept:
        folder = Path(kept)
        tuned = _tune(comparison, folder, resume, jobs)
        folders = {
            method: [_folder(folder, method, seed) for seed in range(comparison.seeds)]
            for method in comparison.methods
        }
        tasks = [
            Task(comparison.config(method, seed, tuned[method]), folders[method][seed], resume)
            for seed in range(comparison.seeds)
            for method in comparison.methods
        ]
        failed = _train(tasks, jobs)
        if len(failed) == len(tasks):
            raise UserError(failed[0])
        for said in failed:
            print(f"warning: {said}", file=sys.stderr)
        if resume:
            for method, own, settings in _earlier(comparison, folder):
                folders[method], tuned[method] = own, settings
        rounds = tasks[0].config.rounds
        rows = [{**row_of(method, own, rounds), "tuned": tuned[method]} for method, own in folders.items()]
        if out is not None:
            write_report([folder for own in folders.values() for folder in own], out / "report.html")
    emit({"methods": rows}, _table(rows), json=json)
    if out is not None and not json:
        emit({}, f"report: {out / 'report.html'}", json=False)


def _warn(comparison: Comparison) -> None:
    """Tell of settings that no method obeys, and of methods that leave out what is off."""
    grid = comparison.tune
    own = [{grid.key: value} for value in grid.values] if grid else [{}]
    configs = [comparison.config(method, 0, each) for method in comparison.methods for each in own]
    warn_of_idle({**comparison.settings, **own[-1]}, configs)
    warn_of_variants(configs[len(own) - 1 :: len(own)])


def _tune(comparison: Comparison, out: Path, resume: bool, jobs: int) -> dict[str, dict[str, Any]]:
    """The settings that are each method's own, and ``tuning.json`` about how they were found."""
    grid, file = comparison.tune, out / "tuning.json"
    if grid is None:
        return {method: {} for method in comparison.methods}
    seed = tuning.seed_beside(comparison.seeds, file, grid)
    tasks = [
        Task(comparison.config(method, seed, {grid.key: value}), folder, resume)
        for method in comparison.methods
        for value, folder in zip(grid.values, grid.folders(_tuning(out, method)), strict=True)
    ]

    def begun() -> None:
        if not file.exists():
            _write_tuning(file, tuning.facts(grid, seed, {}, {}))  # tells a report that these are tries

    _train(tasks, jobs, begun)
    metric = records.read(tasks[0].out).header["metric"]
    rounds = tasks[0].config.rounds
    scores = {
        method: [tuning.score(folder, rounds) for folder in grid.folders(_tuning(out, method))]
        for method in comparison.methods
    }
    chosen = {method: grid.best(own, metric=metric) for method, own in scores.items()}
    new = tuning.facts(grid, seed, scores, chosen)
    _write_tuning(file, tuning.with_kept(new, tuning.kept(file, grid)))
    return {method: {grid.key: value} for method, value in chosen.items()}


def _write_tuning(file: Path, facts: Mapping[str, Any]) -> None:
    file.write_text(json_text(facts, indent=2) + "\n")


def _tuning(out: Path, method: str) -> Path:
    return out / "tuning" / folder_name(method)


def _earlier(comparison: Comparison, out: Path) -> Iterator[tuple[str, list[Path], dict[str, Any]]]:
    """Methods of earlier calls that are in the folder: their runs and their own settings. The user is told of
    those that cannot stand beside this call's."""
    for first in sorted(out.glob(f"*/seed-0/{records.FILE_NAME}")):
        try:
            method = records.read(first).header["method"]
        except UserError as error:
            warnings.warn(f"{first.parent} is left out of the table: {error}", stacklevel=2)
            continue
        if method in comparison.methods or first.parent != _folder(out, method, 0):
            continue
        folders = [_folder(out, method, seed) for seed in range(comparison.seeds)]
        grid, settings = comparison.tune, {}
        if grid is not None:
            chosen = tuning.kept(out / "tuning.json", grid).get("chosen", {})
            settings = {grid.key: chosen[method]} if method in chosen else {}
        reasons = ["it was not tuned"] if grid is not None and not settings else []
        reasons += [
            why
            for seed, folder in enumerate(folders)
            if (why := _unfit(folder, comparison.config(method, seed, settings)))
        ]
        if reasons:
            warnings.warn(f"{method} in {out} is left out of the table: {reasons[0]}", stacklevel=2)
        else:
            yield method, folders, settings


def _unfit(folder: Path, config: Config) -> str:
    """Why a saved run is not the one of a configuration, brought to its end; empty where it is."""
    if not (folder / records.FILE_NAME).exists():
        return f"it has no seed {config.seed}"
    try:
        run = records.read(folder)
    except UserError as error:
        return str(error)
    now, defaults = dataclasses.asdict(config), dataclasses.asdict(Config())
    if differ := changed(run.header["config"], now, defaults, {"rounds", "checkpoint_every"}):
        return f"this call has {differ}"
    if len(run.rounds) == config.rounds or diverged(run):
        return ""
    return f"seed {config.seed} has {many(len(run.rounds), 'round')}, not {config.rounds}"


def _train(tasks: Sequence[Task], jobs: int, begun: Callable[[], None] = lambda: None) -> list[str]:
    """What runs that diverged say; ``begun`` is called with every round."""
    with progress() as display:
        bars = [
            display.add_task(f"{config.method}, seed {config.seed}", total=config.rounds, note="")
            for config in (task.config for task in tasks)
        ]

        def report(number: int, record: records.Round) -> None:
            begun()
            display.update(bars[number], completed=record["round"] + 1, note=note(record))

        return run_all(tasks, jobs, report)


def _folder(out: Path, method: str, seed: int) -> Path:
    return out / folder_name(method) / f"seed-{seed}"


def folder_name(method: str) -> str:
    """Folder of a method's runs: a variant's colon is not allowed in names everywhere."""
    return method.replace(":", "-")


def row_of(method: str, folders: Sequence[Path], rounds: int) -> dict[str, Any]:
    """What the table says of a method: the most that a participant of any seed pays and the mean over them,
    scores of all seeds."""
    runs = [records.read(folder) for folder in folders]
    scores = [tuning.score(folder, rounds) for folder in folders]
    ended = [score for score in scores if not math.isnan(score)]
    whole = [run for run, score in zip(runs, scores, strict=True) if not math.isnan(score)]
    ends = [run.rounds[-1] for run in whole or runs if run.rounds]
    costs: list[Any] = [participant for run in runs for participant in run.header["participants"]]
    return {
        "method": method,
        "metric": runs[0].header["metric"],
        **{name: max(p[name] for p in costs) for name in _COSTS},
        **{f"{name}_mean": fmean(p[name] for p in costs) for name in _COSTS},
        "coverage": fmean(end["coverage"] for end in ends) if ends else None,
        "scores": ended,
        "diverged": len(scores) - len(ended),
        "runs": len(scores),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> object:
    metric = rows[0]["metric"]
    tuned = list(rows[0]["tuned"])
    columns = ("method", "share of model", "FLOP per step", "bytes per round", "coverage", *tuned, metric)
    body = [
        (
            row["method"],
            _cost(row, "share", percent),
            _cost(row, "flops_per_step", lambda value: si(value, "FLOP")),
            _cost(row, "bytes_per_round", lambda value: si(value, "B")),
            percent(row["coverage"]),
            *map(str, row["tuned"].values()),
            finals(row["scores"], metric, {"diverged": row["diverged"]}, row["runs"]),
        )
        for row in rows
    ]
    drawn = any(row["method"].split(":")[0] == "fjord" for row in rows)
    return table(columns, body, caption=_WIDEST if drawn else None)


def _cost(row: Mapping[str, Any], name: str, text: Callable[[float], str]) -> str:
    return mean_and_most(row[f"{name}_mean"], row[name], text)
