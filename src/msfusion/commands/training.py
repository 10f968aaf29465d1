"""From a configuration to a simulation, for the commands that train."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from msfusion import records
from msfusion.capture import Capture, capture
from msfusion.config import Config
from msfusion.core.seeds import derive
from msfusion.data import Federation
from msfusion.data import load as load_data
from msfusion.learn.evaluation import Evaluation
from msfusion.learn.local import seeded
from msfusion.learn.objective import Objective
from msfusion.models import build
from msfusion.report.numbers import many, percent
from msfusion.runtimes import checkpoint
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation


def federation_of(config: Config) -> Federation:
    """Data of a configuration, split over its participants."""
    return load_data(config.data, config.participants, config.seed)


def simulation_of(
    config: Config, data: Federation, out: Path | None, captured: Capture | None = None
) -> Simulation:
    """The simulation that a configuration describes."""
    with seeded(derive(config.seed, "model"), torch.device("cpu")):
        model, example = build(config.model.name, data.inputs, config.model.options)
    if config.model.axes:
        captured = captured or capture(model, example, overrides=config.model.axes, logits_alone=True)
    objective = Objective(language=data.task == "language")
    problem = Problem(model, example, data.train, data.test, objective, config.model.name)
    return Simulation(problem, config, out=out, captured=captured)


@contextmanager
def stoppable(out: Path | None, again: str | None = None) -> Iterator[None]:
    """End the command with one line and exit code 130 on Ctrl-C.

    again: how to go on; by default with ``--resume``, where a run is saved in ``out``.
    """
    try:
        yield
    except KeyboardInterrupt:
        saved = out is not None and any(out.rglob(checkpoint.FILE_NAME))
        how = again or (f"continue with --out {out} --resume" if saved else "nothing is saved")
        print(f"stopped: {how}", file=sys.stderr)
        raise SystemExit(130) from None


def note(record: records.Round) -> str:
    """The line behind a progress bar."""
    score = record["evaluation"]
    loss = record["train_loss"]
    parts = ["nobody trained" if loss is None else f"loss {loss:.3f}", f"coverage {record['coverage']:.0%}"]
    if score and score["accuracy"] is not None:
        parts.append(f"accuracy {score['accuracy']:.1%}")
    return ", ".join(parts)


def scored(method: str, rounds: int, score: Evaluation) -> str:
    """What came of a run, in words."""
    accuracy = f"accuracy {percent(score.accuracy)}, " if score.accuracy is not None else ""
    return f"{method} after {many(rounds, 'round')}: {accuracy}loss {score.loss:.4f}"
