"""Settings of a run, and what it trains on what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from msfusion.errors import UserError
from msfusion.learn.adapt import Adapt
from msfusion.learn.capacity import Capacity, parse_bytes
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.learn.methods import get_method
from msfusion.learn.objective import Objective
from msfusion.learn.steps import ServerStep
from msfusion.learn.together import Batched

Part = Annotated[float, Gt(0), Le(1)]
Positive = Annotated[float, Gt(0)]
Bytes = int | str
Workers = Annotated[int, Ge(1)] | Literal["auto"]
T = TypeVar("T")

CAPACITIES = tuple(field.name for field in fields(Capacity))
"""The settings of which exactly one says what a participant can afford."""

SIMULATED = ("loss_rate", "late_rate")
"""The settings that work in a simulation only, as they imitate a network."""


@dataclass(frozen=True)
class Run:
    """Settings of a run, apart from model and data.

    What a participant can afford is given by exactly one of ``width``, ``share``, ``memory`` and ``flops``:
    one value for all, or several that participants take in turn (the first has the first, and so on).
    """

    method: str = "msfusion"  # or a variant, as msfusion:in-step
    # Share of every axis that the method cuts, rounded half up to units; to none is refused
    width: Part | tuple[Part, ...] | None = None
    share: Part | tuple[Part, ...] | None = None  # largest share of the full model's parameters
    memory: Bytes | tuple[Bytes, ...] | None = None  # most that training takes, such as 500MB
    flops: Positive | tuple[Positive, ...] | None = None  # most per optimizer step
    rounds: Annotated[int, Ge(1)] = 20  # in all; a resumed run counts those that it has done
    seed: int = 0  # of every random choice
    overlap: Annotated[float, Ge(0), Lt(1)] = 0.0  # msfusion: least share of windows that the next repeat
    twins: Annotated[float, Ge(0), Le(1)] | None = None  # msfusion: units start as copies; 1: stay so
    complement: bool = True  # msfusion:apart: each sub-model makes up for what the others get wrong
    # How much of the merged change is applied: all, or ever less; standalone merges nothing
    server_step: ServerStep = "constant"
    # Share of the last move that the next one repeats; standalone has none
    server_momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    evaluate_every: Annotated[int, Ge(1)] = 1  # rounds; the last round is always evaluated
    checkpoint_every: Annotated[int, Ge(1)] = 10  # rounds; the last round is always saved
    sample: Annotated[float, Gt(0), Le(1)] = 1.0  # share of the participants that take part in a round
    loss_rate: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the contributions that get lost
    # Share that is merged one round later, as values of a round ago; those of the last round are not
    late_rate: Annotated[float, Ge(0), Le(1)] = 0.0
    # Leave the head's rows for labels without examples out of contributions; standalone has none
    mask_unseen: bool = False
    # So many times the log of each label's share with a participant is added to the logits in training
    logit_adjustment: Annotated[float, Ge(0)] = 0.0
    device: str = "cpu"  # or cuda, cuda:1: where to compute
    threads: Annotated[int, Ge(1), Le(4096)] = 1  # of torch's operations; one is fastest on a CPU
    workers: Workers = "auto"  # processes that train: one per core, or so many
    batched: Batched = "auto"  # participants train at once: on, off, or where that is faster: on a GPU
    script: bool = True  # known models on a CPU run without Python after 1000 steps, to the same bits
    compile: bool = False  # torch.compile what trains, once per width: minutes, for steps of less overhead
    train: Train = field(default_factory=Train)
    contrast: Contrast = field(default_factory=Contrast)  # msfusion only
    adapt: Adapt = field(default_factory=Adapt)  # msfusion only: how the overlap rate moves

    def capacities(self) -> list[Capacity]:
        """What participants can afford, in turn; UserError unless it is given in one way."""
        values = {name: getattr(self, name) for name in CAPACITIES}
        given = {name: as_tuple(value) for name, value in values.items() if value is not None}
        if len(given) != 1 or not next(iter(given.values())):
            got = " and ".join(f"{name} {values[name]}" for name in given) or "none"
            raise UserError(f"expected one of {', '.join(CAPACITIES)} for a participant's part, got {got}")
        (name, each), *_ = given.items()
        return [Capacity(**{name: parse_bytes(v) if name == "memory" else v}) for v in each]

    @property
    def rounds_may_change(self) -> bool:
        """Whether a run can go on with another number of rounds: nothing is scheduled over them."""
        return self.server_step == self.train.lr_schedule == "constant" and self.adapt.kind in (
            "constant",
            "feedback",
        )


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
        if not (isinstance(self.example, tuple) and all(isinstance(part, Tensor) for part in self.example)):
            parts = self.example if isinstance(self.example, tuple) else ()
            got = ", ".join(type(part).__name__ for part in parts) or type(self.example).__name__
            raise UserError(
                f"expected example inputs as a tuple of tensors, (x,) for a model of one input, got {got}: "
                "pack the parts of an input into one tensor where it has several"
            )
        check_participants(self.train)
        check_test(self.test)


def check_real(run: Run, where: str) -> None:
    """Raise UserError for settings that work in a simulation only; where: "among peers", "under Flower"."""
    for one in fields(Run):
        if one.name in SIMULATED and (got := getattr(run, one.name)) != one.default:
            raise UserError(
                f"expected {one.name} = {one.default} {where}, got {got}: it works in a simulation only"
            )


def check_exchange(run: Run, where: str) -> None:
    """Raise UserError for a method whose participants exchange nothing; where: as for ``check_real``."""
    if get_method(run.method).evaluated == "own":
        raise UserError(
            f"expected a method whose participants exchange something {where}, got {run.method!r}: take "
            "another, or train in a simulation"
        )


def as_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """Several values as they are, a single one alone."""
    return value if isinstance(value, tuple) else (value,)


def check_participants(datasets: Sequence[Dataset[Any]]) -> None:
    """Raise UserError unless there are participants and each has data."""
    if not datasets:
        raise UserError("expected at least one participant, got no training data")
    for number, data in enumerate(datasets):
        _check_indexed(data, f"participant {number}")
        if not len(data):  # type: ignore[arg-type]
            raise UserError(
                f"expected data for every participant, got none for participant {number} of "
                f"{len(datasets)}; lower the number of participants or split more evenly"
            )


def check_test(data: Dataset[Any]) -> None:
    """Raise UserError unless there is something to score on."""
    _check_indexed(data, "the test set")
    if not len(data):  # type: ignore[arg-type]
        raise UserError("expected a test set with at least one example, got none")


def _check_indexed(data: Dataset[Any], whose: str) -> None:
    if isinstance(data, DataLoader):
        raise UserError(
            f"expected datasets to draw batches from, got a DataLoader for {whose}; give its .dataset"
        )
    serves = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not serves or isinstance(data, IterableDataset | str | bytes | Mapping):
        raise UserError(
            f"expected datasets with a length and an index, got {type(data).__name__} for {whose}; read its "
            "examples into such a dataset first"
        )
