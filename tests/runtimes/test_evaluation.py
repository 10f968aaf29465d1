"""What an evaluation leaves behind, and what it depends on."""

from typing import Any, Self

import pytest
import torch
from blobs import CLASSES, FEATURES, TEST, participants, settings
from torch import Tensor, nn

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
