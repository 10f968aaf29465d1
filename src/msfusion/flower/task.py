"""What a Flower app is made from: the user's model and data, and the settings of its run configuration."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.utils.data import Dataset

from msfusion.errors import UserError
from msfusion.learn.capacity import Capacity
from msfusion.learn.objective import Objective
from msfusion.runtimes.run import CAPACITIES, Run, check_exchange, check_real
from msfusion.settings import filled, validated


@dataclass(frozen=True)
class Waiting:
    """How long the server side waits for participants."""

    patience: Annotated[float, Ge(0)] = 60.0  # seconds: for all of them, before the first round
    quorum: Annotated[float, Gt(0), Le(1)] = 0.5  # share of them without which no round begins
    deadline: Annotated[float, Gt(0)] = 600.0  # seconds: for the answers in a round

    def least(self, participants: int) -> int:
        """Participants without whom no round begins."""
        return math.ceil(Fraction(str(self.quorum)) * participants)


@dataclass(frozen=True)
class Settings(Run):
    """The run configuration of an app, ``[tool.flwr.app.config]``. What participants can afford is what their
    SuperNodes state; the setting is for those that state nothing.

    out: run directory at the server side; relative to the working directory of its process.
    norm_bound: largest change of a contribution (RMS), as a multiple of the others' median.
    task: the user's own settings.
    """

    participants: Annotated[int, Ge(1)] = 10
    out: str = "runs/flower"
    waiting: Waiting = field(default_factory=Waiting)
    norm_bound: Annotated[float, Gt(1)] = 10.0
    task: dict[str, int | float | str | bool] = field(default_factory=dict)

    @property
    def training(self) -> dict[str, Any]:
        """The settings that decide what is trained; the others may change when a run goes on."""
        own = dataclasses.asdict(self)
        return {k: v for k, v in own.items() if k not in ("out", "waiting", "norm_bound")}


@dataclass(frozen=True)
class Task:
    """What is trained on what. Every process of a run makes it from the same code.

    model: settings -> the full model and example inputs of it, a batch of two or more. At participants its
    parameters get no memory; at the server side they are written straight to disk, under the run's seed.
    data: (settings, participant, node configuration) -> the training examples of one participant, a dataset
    of (input, target) pairs. It is called where the data lie, and nowhere else.
    objective: the loss, an ``Objective`` or a function (output, targets) -> mean loss; by default
    cross-entropy of logits (..., classes).
    name: of the model, in the records.
    axes: dims declared by hand, pattern over parameter names -> a dim per dimension.
    meaning: as ``data``, -> what labels or tokens stand for there, such as the names of the classes. Only a
    hash of it leaves the participant, which is not let in where others have another.
    """

    model: Callable[[Settings], tuple[nn.Module, tuple[Tensor, ...]]]
    data: Callable[[Settings, int, Mapping[str, Any]], Dataset[Any]]
    objective: Objective = field(default_factory=Objective)
    name: str = "model"
    axes: Mapping[str, list[str]] = field(default_factory=dict, hash=False)
    meaning: Callable[[Settings, int, Mapping[str, Any]], str] | None = None

    def __post_init__(self) -> None:
        given: Any = self.objective
        if isinstance(given, Objective):
            return
        if not callable(given) or isinstance(given, type):
            raise UserError(
                "expected the objective of a Task as Objective(...) or a function (output, targets) -> mean "
                f"loss, got {given!r}"
            )
        object.__setattr__(self, "objective", Objective(given))

    def made(self, settings: Settings) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The model and its example inputs; UserError where ``model`` returns something else."""
        made: Any = self.model(settings)
        pair = isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)
        if not (pair and isinstance(made[1], tuple) and all(isinstance(part, Tensor) for part in made[1])):
            got = made if isinstance(made, tuple) else (made,)
            raise UserError(
                "expected model(settings) in task.py to return a module and a tuple of tensors, such as net, "
                f"(torch.zeros(2, 5),), got {', '.join(type(part).__name__ for part in got)}"
            )
        module, example = made
        return module, example


def settings_of(run_config: Mapping[str, Any]) -> Settings:
    """The settings of a run configuration, whose keys are dotted; UserError where they cannot work."""
    settings = filled(Settings, run_config)
    check_exchange(settings, "under Flower")
    check_real(settings, "under Flower")
    return settings


def capacity_of(table: Mapping[str, Any]) -> Capacity | None:
    """What a node configuration says that a participant can afford; None where it says nothing."""
    stated = {name: table[name] for name in CAPACITIES if name in table}
    for name, value in stated.items():
        if not isinstance(value, int | float | str):
            raise UserError(f"expected one value for {name} of one participant, got {value}")
    return validated(Run, stated).capacities()[0] if stated else None
