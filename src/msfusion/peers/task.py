"""What a peer trains, and what it shows of itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from msfusion.capture import Capture
from msfusion.learn.evaluation import Evaluation
from msfusion.learn.objective import Objective
from msfusion.runtimes.scribe import Described


@dataclass(frozen=True)
class Task:
    """What a peer trains.

    model: the full model without values (parameters on the meta device).
    build: makes it with values; called under the run's seed.
    data: this participant's examples.
    test: what the full model is scored on, where this peer does that.
    fingerprint: hash of all settings on which the peers must agree.
    """

    model: nn.Module
    build: Callable[[], nn.Module]
    captured: Capture
    example: tuple[Tensor, ...]
    data: Dataset[Any]
    objective: Objective
    fingerprint: str
    seed: int
    test: Dataset[Any]
    described: Described


@dataclass
class Progress:
    """What a peer shows of itself.

    stage: what it is doing.
    loss: of its last training.
    score: of its sub-model as received, on its own examples.
    full: of the full model, where this peer scores it.
    """

    round: int = 0
    stage: str = "starting"
    loss: float | None = None
    score: Evaluation | None = None
    full: Evaluation | None = None
    here: list[str] = field(default_factory=list)
    sent: int = 0
    received: int = 0
