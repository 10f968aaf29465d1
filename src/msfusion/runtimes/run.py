"""Settings of a run, and what it trains on what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.utils.data import Dataset

from msfusion.errors import UserError
from msfusion.learn.adapt import Adapt
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective
from msfusion.learn.steps import ServerStep


@dataclass(frozen=True)
class Run:
    """Settings of a run, apart from model and data.

    Each participant's part of the model is given by ``width`` (of every axis that the method cuts) or by
    ``share`` (of the full model's parameters, at most); exactly one of them.
    """

    method: str = "msfusion"
    width: Annotated[float, Gt(0), Le(1)] | None = None
    share: Annotated[float, Gt(0), Le(1)] | None = None
    rounds: Annotated[int, Ge(1)] = 20
    seed: int = 0
    overlap: Annotated[float, Ge(0), Lt(1)] = 0.0  # msfusion: share of a window that the next one repeats
    server_step: ServerStep = "constant"
    evaluate_every: Annotated[int, Ge(1)] = 1  # rounds; the last round is always evaluated
    checkpoint_every: Annotated[int, Ge(1)] = 10  # rounds; the last round is always saved
    sample: Annotated[float, Gt(0), Le(1)] = 1.0  # share of the participants that take part in a round
    loss_rate: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the contributions that get lost
    late_rate: Annotated[float, Ge(0), Le(1)] = 0.0  # share that is merged one round later
    mask_unseen: bool = False  # leave the head's rows for labels without examples out of contributions
    device: str = "cpu"
    threads: Annotated[int, Ge(1)] = 1  # of torch's operations; one is fastest for sub-models on a CPU
    train: Train = field(default_factory=Train)
    contrast: Contrast = field(default_factory=Contrast)  # msfusion only
    adapt: Adapt = field(default_factory=Adapt)  # msfusion only: how the overlap rate moves


@dataclass(frozen=True)
class Problem:
    """What is trained on what.

    model: the full model; a simulation trains it in place.
    example: example inputs of the model, a batch of two or more.
    train: one dataset per participant, of (input, target) pairs.
    test: what the full model is scored on.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    train: Sequence[Dataset[Any]]
    test: Dataset[Any]
    objective: Objective = field(default_factory=Objective)
    name: str = "model"

    def __post_init__(self) -> None:
        check_participants(self.train)


def check_participants(datasets: Sequence[Dataset[Any]]) -> None:
    """Raise UserError unless there are participants and each has data."""
    if not datasets:
        raise UserError("expected at least one participant, got no training data")
    for number, data in enumerate(datasets):
        if not hasattr(data, "__len__"):
            raise UserError(
                f"expected datasets with a length and an index, got {type(data).__name__} for participant "
                f"{number}; read its examples into such a dataset first"
            )
        if not len(data):
            raise UserError(
                f"expected data for every participant, got none for participant {number} of "
                f"{len(datasets)}; lower the number of participants or split more evenly"
            )
