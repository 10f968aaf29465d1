"""``msfusion evaluate``: the score of a saved model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msfusion.commands.output import emit
from msfusion.commands.training import federation_of, scored, simulation_of
from msfusion.config import Config
from msfusion.errors import UserError
from msfusion.learn.disk_store import last_commit
from msfusion.runtimes import checkpoint
from msfusion.settings import validated


def run(source: Path, *, data: str | None, device: str | None, json: bool) -> None:
    """Score the last checkpoint of a run on the run's test set, as its method does.

    data: where the run's data stand now; None for where they stood.
    device: where to compute; None for where the run did.
    """
    if checkpoint.begun(source / "initial") or last_commit(source / "model"):
        raise UserError(
            f"expected a run of msfusion simulate or compare, got one under Flower in {source}, which has "
            f"no test set: write the model (msfusion export {source} model.safetensors) and score that"
        )
    config = _config(source, checkpoint.load(source)[1]["settings"])
    if data is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=data))
    if device is not None:
        config = dataclasses.replace(config, device=device)
    done, score = simulation_of(config, federation_of(config), source).score_saved()
    value = {"method": config.method, "rounds": done, **dataclasses.asdict(score)}
    emit(value, f"{scored(config.method, done, score)} on {score.examples} test examples", json=json)


def _config(source: Path, settings: Mapping[str, Any]) -> Config:
    if not settings.keys() >= {"model", "data"}:
        raise UserError(
            f"expected a run of msfusion simulate or compare, got one from Python in {source}, which does "
            "not say how to make its model and data; call msfusion.simulate with resume=True"
        )
    return validated(Config, settings)
