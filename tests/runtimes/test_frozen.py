"""Parameters that want no gradient stay as they are to the bit, and nobody hands them over."""

from typing import Any

import pytest
import torch
from blobs import FEATURES, Net, net, participants, play, settings, state
from torch import Tensor, nn

import msfusion
from msfusion import Run, UserError
from msfusion.learn.contrast import Contrast
from msfusion.learn.objective import Objective
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation

WIDTH = 0.3
"""Of 12 and 7 units 4 and 2 are left: factors of the scale rule that do not divide."""


def frozen(dtype: torch.dtype = torch.float32) -> Net:
    """All between the first layer and the last is frozen; of two layers that follow an axis which is cut the
    weights are multiplied."""
    model = net(dropout=0.0)
    for part in (model.norm, model.second):
        part.requires_grad_(False)
    return model.to(dtype)


class Half(nn.Module):
    """A model in half precision on inputs that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = frozen(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inside(x.bfloat16()).float()
        return out


def simulation(**changes: Any) -> Simulation:
    data = participants()
    problem = Problem(frozen(), (torch.randn(2, FEATURES),), data, data[0], Objective())
    return Simulation(problem, settings(width=WIDTH, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batched": "on"},
        {"contrast": Contrast(weight=0.5)},
        {"train": {"keep_optimizer": True, "optimizer": "adamw"}},
        {"method": "fedrolex"},
        {"logit_adjustment": 1.0},
        {"method": "fedavg-small", "server_momentum": 0.0},
    ],
    ids=str,
)
def test_frozen_parameters_stay_and_the_others_move(changes: dict[str, Any]) -> None:
    model = frozen()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = state(play(model=model, **{"width": WIDTH, "server_momentum": 0.5, **changes}))
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    moved.discard("first.bias")  # before batch norm its gradient is rounding
    assert moved == {"first.weight", "head.weight", "head.bias"}


def test_a_frozen_bias_is_adjusted_in_training_alone() -> None:
    """Where logits are adjusted, and labels that a participant has not seen are left out."""
    model = frozen()
    model.head.bias.requires_grad_(False)
    before = model.head.bias.detach().clone()
    play(model=model, width=WIDTH, logit_adjustment=1.0, mask_unseen=True)
    assert torch.equal(model.head.bias, before)


def test_in_half_precision_too() -> None:
    torch.manual_seed(0)
    model = Half()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = state(play(model=model, width=WIDTH, server_momentum=0.5))
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    moved.discard("inside.first.bias")
    assert moved == {"inside.first.weight", "inside.head.weight", "inside.head.bias"}


def test_they_are_neither_handed_over_nor_counted_as_covered_or_sent() -> None:
    one = simulation(contrast=Contrast(weight=0.5))
    participant = one.participants[0]
    windows = one.learner.windows(0, participant)
    contribution, _, memory = one.learner.train(0, participant, windows, one.store.pull(0, windows))
    trained = {"first.weight", "first.bias", "head.weight", "head.bias"}
    assert contribution.values.keys() == trained
    assert memory is not None
    assert memory.values.keys() == trained
    assert one.learner.remembered(participant.widths).keys() == memory.packed().keys()
    one.coverage.add(windows)
    held = sum(value.numel() for value in contribution.values.values())
    full = sum(p.numel() for p in one.model.parameters() if p.requires_grad)
    assert one.coverage.summary().mean == pytest.approx(held / full)
    all_values = one.setup.submodels.parameters(participant.widths)
    assert one.learner.cost(participant, participant.widths).bytes_per_round == 4 * (all_values + held)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    data = participants()
    with pytest.raises(UserError, match="a model with parameters that want a gradient, got none"):
        msfusion.simulate(net().requires_grad_(False), data, data[0], Run(width=0.5))
