"""A problem that takes no time: points around one centre per class, a small model, uneven participants."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import msfusion
from msfusion import Result, Run, Train

CLASSES, FEATURES = 3, 5
SIZES = (40, 9, 25, 70)
"""Examples of each participant: the second has fewer than a batch."""


def points(examples: int, seed: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (examples,), generator=draw)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
    return TensorDataset(3 * centres[labels] + torch.randn(examples, FEATURES, generator=draw), labels)


def participants(sizes: tuple[int, ...] = SIZES) -> list[TensorDataset]:
    return [points(size, seed=1 + i) for i, size in enumerate(sizes)]


TEST = points(60, seed=99)


class Net(nn.Module):
    """Two hidden layers of 12 and 7 units: sizes that windows do not divide."""

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 12)
        self.norm: nn.Module = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(12, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(self.dropout(x))))


def net(seed: int = 0, norm: bool = True, dropout: float = 0.2) -> Net:
    torch.manual_seed(seed)
    return Net(norm, dropout)


def settings(**changes: Any) -> Run:
    train = Train(**{"lr": 0.1, "batch": 16, "steps": 3} | changes.pop("train", {}))
    return Run(**{"width": 0.5, "rounds": 3, "train": train} | changes)


def play(
    out: Path | None = None, *, resume: bool = False, model: nn.Module | None = None, **changes: Any
) -> Result:
    """A run with ``changes`` to the settings; three rounds of three steps by default."""
    return msfusion.simulate(
        model or net(), participants(), TEST, settings(**changes), out=out, resume=resume
    )


def state(result: Result) -> dict[str, Tensor]:
    return dict(result.model.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether both hold equal tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
