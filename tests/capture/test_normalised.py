"""Which parameters are directly followed by a norm that takes their output's size away."""

import pytest
import torch
from torch import nn

from msfusion.capture import capture
from msfusion.core.scale import factors

IMAGE = (torch.randn(2, 3, 8, 8),)
VECTOR = (torch.randn(2, 5),)


class Pinned(nn.Sequential):
    """Its norm stays in evaluation mode, as where a pretrained model is tuned."""

    def train(self, mode: bool = True) -> "Pinned":
        super().train(mode)
        self[1].eval()
        return self


def test_a_norm_with_fixed_statistics_takes_no_size_away() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    for model, normalised in (
        (nn.Sequential(*layers), {"0.weight", "2.weight"}),
        (Pinned(*layers), {"2.weight"}),
    ):
        model.eval()[3].train()
        modes = [part.training for part in model.modules()]
        found = capture(model, IMAGE).axes.normalised
        assert {name for name in found if name.endswith("weight")} == normalised
        assert [part.training for part in model.modules()] == modes


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.conv(x))


@pytest.mark.parametrize(
    ("layers", "example", "normalised"),
    [
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], IMAGE, {"0.weight"}),
        ([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)], IMAGE, set()),
        ([nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.BatchNorm1d(4)], IMAGE, {"0.weight"}),
        ([nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)], IMAGE, set()),
        ([nn.Conv2d(3, 4, 3, bias=False), nn.GroupNorm(2, 4)], IMAGE, {"0.weight"}),
        ([nn.Linear(5, 4), nn.LayerNorm(4)], VECTOR, set()),
        ([nn.Linear(5, 4, bias=False), nn.LayerNorm(4)], VECTOR, {"0.weight"}),
        ([nn.Linear(5, 4, bias=False), nn.RMSNorm(4)], VECTOR, {"0.weight"}),
        ([nn.Linear(5, 8), nn.Unflatten(1, (2, 4)), nn.BatchNorm1d(2)], VECTOR, set()),
        ([nn.Linear(5, 8, bias=False), nn.Unflatten(1, (2, 4)), nn.BatchNorm1d(2)], VECTOR, {"0.weight"}),
        ([nn.Linear(8, 4), nn.BatchNorm1d(3)], (torch.randn(2, 3, 8),), set()),
        ([nn.GRUCell(5, 4), nn.LayerNorm(4)], VECTOR, set()),
        ([Skip()], IMAGE, set()),
    ],
)
def test_only_what_goes_straight_into_a_norm(
    layers: list[nn.Module], example: tuple[torch.Tensor, ...], normalised: set[str]
) -> None:
    found = capture(nn.Sequential(*layers), example).axes.normalised
    assert {name for name in found if name.endswith("weight") and "norm" not in name} == normalised


def test_the_scale_rule_leaves_them_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3)
    )
    axes = capture(model, IMAGE).axes
    assert factors(axes, {"0.out": 2, "2.out": 3}) == {"4.weight": 2.0}
