"""``msfusion peer``: one participant of a run among peers, or several of them on this machine for a try."""

import dataclasses
import hashlib
import json as json_format
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msfusion.capture import capture
from msfusion.config import Config, load
from msfusion.data import load as load_data
from msfusion.learn.objective import Objective
from msfusion.models import build, build_without_values
from msfusion.peers.peer import Peer, Progress, Task
from msfusion.peers.settings import Link, number_of

_OWN = ("device", "threads", "evaluate_every", "checkpoint_every")
"""Settings in which peers may differ."""


def run(
    preset: str,
    settings: Mapping[str, Any],
    *,
    participant: str,
    link: Link,
    own_data: bool,
    out: Path,
    export: Path | None = None,
) -> None:
    """Take part in a run until its last round."""
    config = load(preset, settings)
    number = number_of(participant, config.peers.names, config.participants)
    task = task_of(config, number, own_data=own_data)

    def say(text: str) -> None:
        print(f"{participant}: {text}", file=sys.stderr, flush=True)

    Peer(
        task,
        config,
        config.peers,
        number,
        config.participants,
        out,
        link,
        say,
        Shower(participant).show,
        export=export,
    ).run()


def task_of(config: Config, number: int, *, own_data: bool) -> Task:
    """What one participant trains.

    own_data: the data that the configuration names are all this participant's; otherwise they are divided
    among all of them, as in a simulation.
    """
    data = load_data(config.data, 1 if own_data else config.participants, config.seed)
    spec, options = config.model.name, config.model.options
    model, example = build_without_values(spec, data.inputs, options)
    captured = capture(model, example, overrides=config.model.axes or None)
    return Task(
        model,
        lambda: build(spec, data.inputs, options)[0],
        captured,
        example,
        data.train[0 if own_data else number],
        Objective(language=data.task == "language"),
        fingerprint(config, captured.axes.to_json()),
        config.seed,
    )


def fingerprint(config: Config, axes: str) -> str:
    """Hash of all settings on which peers must agree, and of the model's axes."""
    table = {key: value for key, value in dataclasses.asdict(config).items() if key not in _OWN}
    table["data"] = {key: value for key, value in table["data"].items() if key != "path"}
    text = json_format.dumps([table, axes], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Shower:
    """Shows a peer's progress: one line per round and stage."""

    def __init__(self, name: str) -> None:
        self._name = name

    def show(self, progress: Progress) -> None:
        """Show where the peer is."""
        loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
        print(
            f"{self._name}: round {progress.round} {progress.stage}{loss}, here {' '.join(progress.here)}, "
            f"sent {progress.sent / 1e6:.1f} MB, received {progress.received / 1e6:.1f} MB",
            file=sys.stderr,
            flush=True,
        )
