"""``msfusion simulate``: one run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msfusion import records
from msfusion.commands.idle import warn_of_idle
from msfusion.commands.output import emit, progress
from msfusion.commands.training import federation_of, note, scored, simulation_of, stoppable
from msfusion.config import Config, load
from msfusion.errors import UserError
from msfusion.report.numbers import percent
from msfusion.runtimes.simulation import Result


def run(
    preset: str,
    settings: Mapping[str, Any],
    *,
    out: Path | None,
    resume: bool,
    tensorboard: bool,
    json: bool,
) -> None:
    """Train as configured; print the result."""
    config = load(preset, settings)
    if out is None and (resume or tensorboard):
        raise UserError("expected a run directory (--out DIR) for --resume and --tensorboard, got none")
    warn_of_idle(settings, [config])
    with stoppable(out), progress() as display:
        simulation = simulation_of(config, federation_of(config), out)
        task = display.add_task(config.method, total=config.rounds, note="")

        def watch(record: records.Round) -> None:
            display.update(task, completed=record["round"] + 1, note=note(record))

        watchers = [watch, *_events(out, tensorboard)]

        def watch_all(record: records.Round) -> None:
            for one in watchers:
                one(record)

        result = simulation.run(resume=resume, watch=watch_all)
    emit(_summary(result, out), _text(config, result, out), json=json)


def _events(out: Path | None, wanted: bool) -> list[Callable[[records.Round], None]]:
    if not wanted or out is None:
        return []
    from msfusion.events import Events

    return [Events(out).round]


def _summary(result: Result, out: Path | None) -> dict[str, Any]:
    return {
        "accuracy": result.evaluation.accuracy,
        "loss": result.evaluation.loss,
        "coverage": result.coverage.share,
        "out": str(out) if out else None,
    }


def _text(config: Config, result: Result, out: Path | None) -> str:
    kept = f"saved in {out}" if out else "nothing is saved without --out"
    score = scored(config.method, config.rounds, result.evaluation)
    return f"{score}, coverage {percent(result.coverage.share)}; {kept}"
