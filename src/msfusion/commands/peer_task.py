"""What every peer derives alike from the configuration, and what of it they must agree on."""

import dataclasses
import hashlib
import json
from importlib.metadata import version
from typing import Any

from msfusion.capture import capture
from msfusion.config import Config
from msfusion.core.seeds import derive
from msfusion.data import Federation, load
from msfusion.data.digest import divided
from msfusion.learn.drawn import made_as_with_values
from msfusion.learn.objective import Objective
from msfusion.models import build
from msfusion.peers.task import Task
from msfusion.runtimes.scribe import Described

_OWN = ("device", "threads", "workers", "evaluate_every", "checkpoint_every")
"""Settings in which peers may differ."""


def task_of(config: Config, number: int, *, own_data: bool) -> Task:
    """What one participant trains.

    own_data: the data that the configuration names are all this participant's; otherwise they are divided
    among all of them, as in a simulation.
    """
    data = _data_of(config, own_data=own_data)
    spec, options = config.model.name, config.model.options
    model, example, drawn = made_as_with_values(
        lambda: build(spec, data.inputs, options), derive(config.seed, "model")
    )
    captured = capture(model, example, overrides=config.model.axes or None, logits_alone=True)
    objective = Objective(language=data.task == "language")
    return Task(
        model,
        lambda: build(spec, data.inputs, options)[0],
        captured,
        example,
        data.train[0 if own_data else number],
        objective,
        fingerprint(
            config, captured.axes.to_json(), data.meaning, drawn, "" if own_data else divided(data.train[0])
        ),
        config.seed,
        data.test,
        Described(dataclasses.asdict(config), config.model.name, objective.metric),
    )


def _data_of(config: Config, *, own_data: bool) -> Federation:
    """The data of all participants, or of this one alone, which are not divided: a partition would leave
    classes out."""
    if not own_data:
        return load(config.data, config.participants, config.seed)
    text = config.data.name == "text"
    whole = config.data if text else dataclasses.replace(config.data, partition="iid")
    return load(whole, 1, config.seed)


def fingerprint(config: Config, axes: str, meaning: str, drawn: str = "", divided: str = "") -> str:
    """Hash of all settings on which peers must agree, of the model's axes, and of what labels or tokens stand
    for: where each has data of its own, the same number might be another class or word.

    drawn: hash of what the model draws at random beside its parameters.
    divided: hash of what the peers divide among themselves, where they do.
    """
    text = json.dumps([agreed(config), axes, meaning, drawn, divided], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def agreed(config: Config) -> dict[str, Any]:
    """The settings that must be the same at all peers, and the version of msfusion: others may draw or merge
    in another way."""
    table = {key: value for key, value in dataclasses.asdict(config).items() if key not in _OWN}
    table["data"] = {key: value for key, value in table["data"].items() if key != "path"}
    return {**table, "msfusion": version("msfusion")}
