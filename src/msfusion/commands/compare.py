"""``msfusion compare``: several methods over several seeds."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msfusion import records
from msfusion.commands.output import emit, progress, require_positive, table
from msfusion.commands.parallel import Task, run_all
from msfusion.commands.training import note, stoppable
from msfusion.config import load
from msfusion.errors import UserError
from msfusion.learn.methods import get_method
from msfusion.report import write_report
from msfusion.report.numbers import percent, si, spread


def run(
    preset: str,
    settings: Mapping[str, Any],
    methods: Sequence[str],
    seeds: int,
    *,
    out: Path | None,
    resume: bool,
    jobs: int,
    json: bool,
) -> None:
    """Run every method with every seed; print one table and, into ``out``, write one report."""
    require_positive(seeds=seeds)
    _refuse_own(settings)
    if out is None and resume:
        raise UserError("expected the folder of the runs (--out DIR) for --resume, got none")
    for method in methods:
        get_method(method)
    if len(set(methods)) < len(methods):
        raise UserError(f"expected every method once, got {', '.join(methods)}")
    keep = nullcontext(out) if out is not None else TemporaryDirectory()
    with stoppable(out), keep as folder:
        folders = {
            method: [_folder(Path(folder), method, seed) for seed in range(seeds)] for method in methods
        }
        tasks = [
            Task(load(preset, {**settings, "method": method, "seed": seed}), folders[method][seed], resume)
            for seed in range(seeds)
            for method in methods
        ]
        _train(tasks, jobs)
        rows = [_row(method, folders[method]) for method in methods]
        if out is not None:
            write_report([folder for own in folders.values() for folder in own], out / "report.html")
    emit({"methods": rows}, _table(rows), json=json)
    if out is not None and not json:
        emit({}, f"report: {out / 'report.html'}", json=False)


def _refuse_own(settings: Mapping[str, Any]) -> None:
    """Refuse settings that a comparison gives each of its runs itself."""
    for key, option in (("method", "--methods a,b,c"), ("seed", "--seeds K")):
        if key in settings:
            raise UserError(
                f"expected {option} for a comparison, got --set {key}={settings[key]}; use {option} instead"
            )


def _train(tasks: Sequence[Task], jobs: int) -> None:
    with progress() as display:
        bars = [
            display.add_task(f"{config.method}, seed {config.seed}", total=config.rounds, note="")
            for config in (task.config for task in tasks)
        ]

        def report(number: int, record: records.Round) -> None:
            display.update(bars[number], completed=record["round"] + 1, note=note(record))

        run_all(tasks, jobs, report)


def _folder(out: Path, method: str, seed: int) -> Path:
    return out / folder_name(method) / f"seed-{seed}"


def folder_name(method: str) -> str:
    """Folder of a method's runs: a variant's colon is not allowed in names everywhere."""
    return method.replace(":", "-")


def _row(method: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What the table says of a method: costs of its largest participant, scores of all its seeds."""
    runs = [records.read(folder) for folder in folders]
    header = runs[0].header
    metric = header["metric"]
    finals = [run.rounds[-1] for run in runs]
    scores = [final["evaluation"][metric] for final in finals if final["evaluation"]]
    costs = header["participants"]
    return {
        "method": method,
        "metric": metric,
        "share": max(p["share"] for p in costs),
        "flops_per_step": max(p["flops_per_step"] for p in costs),
        "bytes_per_round": max(p["bytes_per_round"] for p in costs),
        "memory_bytes": max(p["memory_bytes"] for p in costs),
        "coverage": sum(final["coverage"] for final in finals) / len(finals),
        "scores": scores,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> object:
    metric = rows[0]["metric"]
    columns = ("method", "share of model", "FLOP per step", "bytes per round", "coverage", metric)
    body = [
        (
            row["method"],
            percent(row["share"]),
            si(row["flops_per_step"], "FLOP"),
            si(row["bytes_per_round"], "B"),
            percent(row["coverage"]),
            spread(row["scores"], metric),
        )
        for row in rows
    ]
    return table(columns, body)
