"""What the server side and every participant derive alike from the task and the settings."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn

from msfusion.capture import Capture, capture
from msfusion.core.seeds import derive
from msfusion.flower.task import Settings, Task, settings_of
from msfusion.learn.capacity import Capacity
from msfusion.learn.drawn import made_as_with_values
from msfusion.runtimes.checkpoint import fingerprint
from msfusion.runtimes.setup import Setup


@dataclass(frozen=True)
class Agreed:
    """The model without values, and who trains what of it.

    buffers: of the full model, with their values.
    key: the same at both sides if versions, model and settings are.
    """

    settings: Settings
    setup: Setup
    buffers: Mapping[str, Tensor]
    key: str


def agree(
    task: Task, run_config: Mapping[str, object], device: torch.device, capacities: tuple[Capacity, ...] = ()
) -> Agreed:
    """Read the model; a process that answers several messages reads it once.

    capacities: of each participant, where the settings do not say it.
    """
    return _agree(task, json.dumps(dict(run_config), sort_keys=True), device, capacities)


@functools.lru_cache(maxsize=1)
def _agree(task: Task, run_config: str, device: torch.device, capacities: tuple[Capacity, ...]) -> Agreed:
    settings, model, example, captured = _read(task, run_config)
    setup = Setup(
        captured,
        example,
        task.objective,
        settings,
        participants=settings.participants,
        device=device,
        capacities=capacities,
    )
    facts = [version("msfusion"), settings.training, captured.axes.to_json()]
    key = fingerprint(json.dumps(facts, sort_keys=True))
    return Agreed(settings, setup, dict(model.named_buffers()), key)


@functools.lru_cache(maxsize=1)
def _read(task: Task, run_config: str) -> tuple[Settings, nn.Module, tuple[Tensor, ...], Capture]:
    settings = settings_of(json.loads(run_config))
    model, example, _ = made_as_with_values(lambda: task.made(settings), derive(settings.seed, "model"))
    alone = task.objective.reads_logits
    captured = capture(model, example, overrides=task.axes or None, logits_alone=alone)
    return settings, model, example, captured
