"""What an evaluation leaves behind, and what it depends on."""

import random
from typing import Any, Self

import numpy as np
import pytest
import torch
from blobs import CLASSES, FEATURES, TEST, participants, settings
from torch import Tensor, nn
from torch.utils.data import Dataset

import msfusion
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation


class Merging(nn.Module):
    """A frozen weight to which evaluation mode adds one and train mode takes it away again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES)
        self.first.weight.requires_grad_(False).zero_()
        self.merged = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode == self.merged:
            self.first.weight.data += -1 if mode else 1
        self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.first(x)))
        return out


@pytest.mark.parametrize("changes", [{}, {"method": "fedavg-small"}, {"evaluate_every": 2}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_what_evaluation_mode_does_to_values_is_undone(training: bool, changes: dict[str, Any]) -> None:
    """Participants pull the weight as it is in training."""
    model = Merging().train(training)  # handed over merged where that is false
    problem = Problem(model, (torch.randn(2, FEATURES),), participants(), TEST)
    seen: list[Tensor] = []
    run = Simulation(problem, settings(**changes))
    result = run.run(watch=lambda _: seen.append(run.store.pull(0, {})["first.weight"]))
    assert torch.equal(torch.stack(seen), torch.zeros(3, 12, FEATURES))
    assert torch.equal(result.model.first.weight, seen[0] + 1)


class Noisy(nn.Module):
    """Draws in evaluation mode as well, as a variational autoencoder may."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        out: Tensor = self.head(x + torch.randn_like(x))
        return out


class Augmented(Dataset[Any]):
    """Draws from all generators."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(FEATURES) * random.random() + np.random.rand(), index % CLASSES


def generators() -> tuple[Any, ...]:
    _, keys, place, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), list(keys), place


@pytest.mark.parametrize("changes", [{}, {"logit_adjustment": 1.0}, {"batched": "on"}], ids=str)
def test_scores_follow_from_the_seed_and_leave_the_generators_alone(changes: dict[str, Any]) -> None:
    def score(evaluate_every: int) -> msfusion.Result:
        torch.manual_seed(0)
        model, before = Noisy(), generators()
        data = Augmented()
        run = settings(workers=1, evaluate_every=evaluate_every, **changes)
        result = msfusion.simulate(model, [data, data], data, run)
        assert generators() == before
        torch.manual_seed(evaluate_every)
        return result

    assert score(1).evaluation == score(3).evaluation
