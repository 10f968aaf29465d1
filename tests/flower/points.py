"""A problem that takes no time as a task under Flower, and what the project's simulation makes of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from msfusion import records
from msfusion.capture import capture
from msfusion.core.seeds import derive
from msfusion.flower import Settings, Task
from msfusion.flower.task import settings_of
from msfusion.learn.carried import Carried
from msfusion.learn.local import seeded
from msfusion.learn.objective import Objective
from msfusion.learn.round import play as round_of
from msfusion.learn.store import MemoryStore
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.setup import Setup
from msfusion.runtimes.simulation import Result, Simulation, values_of

CLASSES, FEATURES = 3, 5
SIZES = (40, 9, 25)
"""Examples of each participant: the second has fewer than a batch."""

CONFIG: dict[str, Any] = {
    "participants": 3,
    "width": 0.5,
    "rounds": 3,
    "train.lr": 0.1,
    "train.batch": 16,
    "train.steps": 3,
}


def points(examples: int, seed: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (examples,), generator=draw)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
    return TensorDataset(3 * centres[labels] + torch.randn(examples, FEATURES, generator=draw), labels)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 12)
        self.norm = nn.BatchNorm1d(12)
        self.dropout = nn.Dropout(0.2)
        self.second = nn.Linear(12, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(self.dropout(x))))


def model(settings: Settings) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.zeros(2, FEATURES),)


def data(settings: Settings, participant: int, node: Mapping[str, Any]) -> TensorDataset:
    return points(SIZES[participant], seed=1 + participant)


TASK = Task(model, data)


def partly_frozen(settings: Settings) -> tuple[nn.Module, tuple[Tensor, ...]]:
    net, example = model(settings)
    net.second.requires_grad_(False)
    return net, example


class Turned(nn.Module):
    """Has complex parameters, looks at values while it is made, and gives a parameter others."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.turn = nn.Parameter(torch.randn(CLASSES, dtype=torch.complex64))
        self.scale = self.turn.abs().mean().item()
        self.turn.data = 1 + 0.1 * torch.randn(CLASSES, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x).mean(-1, keepdim=True) * self.turn * self.scale).abs()


def turned(settings: Settings) -> tuple[nn.Module, tuple[Tensor, ...]]:
    net, example = model(settings)
    return Turned(net), example


def simulated(
    made: Callable[[Settings], tuple[nn.Module, tuple[Tensor, ...]]] = model, **config: Any
) -> Result:
    """What the project's own simulation makes of the same run."""
    settings = settings_of({**CONFIG, **config})
    with seeded(derive(settings.seed, "model"), torch.device("cpu")):
        net, example = made(settings)
    train = [data(settings, i, {}) for i in range(settings.participants)]
    run = Run(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Run)})
    return Simulation(Problem(net, example, train, train[0], Objective()), run).run()


def parameters(result: Result) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in result.model.named_parameters()}


@functools.cache
def alone(
    *present: frozenset[int], participants: int = 3, width: tuple[float, ...] | float = 0.5
) -> dict[str, Tensor]:
    """The parameters after rounds with these participants only, from the parts of every runtime."""
    settings = settings_of({**CONFIG, "participants": participants, "width": width})
    with seeded(derive(settings.seed, "model"), torch.device("cpu")):
        net, example = model(settings)
    captured = capture(net, example)
    setup = Setup(
        captured,
        example,
        Objective(),
        settings,
        participants=settings.participants,
        device=torch.device("cpu"),
    )
    store = MemoryStore(values_of(net), captured.axes, frozenset(captured.trained))
    learner = setup.learner(setup.first_overlap())
    for number, there in enumerate(present):
        those = [setup.participant(i, data(settings, i, {})) for i in sorted(there)]
        round_of(number, those, learner, store, 1.0, Carried())
    return {name: store.state()[name] for name in captured.parameters}


def stored(out: Path) -> dict[str, Tensor]:
    """The parameters in a run directory."""
    folder = out / "model" / (out / "model" / "CURRENT").read_text()
    names = [name for name, _ in Net().named_parameters()]
    values = load_file(folder / "model.safetensors")
    return {name: values[name] for name in names}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether both hold equal tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def rounds(out: Path) -> tuple[records.Round, ...]:
    return records.read(out).rounds
