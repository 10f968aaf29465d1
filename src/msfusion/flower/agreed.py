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
from msfusion.errors import UserError
from msfusion.flower.task import Settings, Task, settings_of
from msfusion.learn.capacity import Capacity
from msfusion.learn.local import seeded
from msfusion.models import made_without_values
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


def _check_real(model: nn.Module) -> None:
    """UserError for tensors that no checkpoint can hold."""
    for name, tensor in {**model.state_dict(), **dict(model.named_parameters())}.items():
        if isinstance(tensor, Tensor) and tensor.is_complex():
            raise UserError(
                f"expected real parameters and persistent buffers under Flower, got {name} of type "
                f"{tensor.dtype}: hold its real and imaginary parts apart, or train in a simulation"
            )


@functools.lru_cache(maxsize=1)
def _read(task: Task, run_config: str) -> tuple[Settings, nn.Module, tuple[Tensor, ...], Capture]:
    settings = settings_of(json.loads(run_config))
    with seeded(derive(settings.seed, "model"), torch.device("cpu")):
        model, example = made_without_values(lambda: task.model(settings))
    _check_real(model)
    return settings, model, example, capture(model, example, overrides=task.axes or None)
