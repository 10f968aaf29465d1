"""What train mode alone does is seen, and what a copy of the module would not do is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msfusion.capture import capture
from msfusion.capture.modes import capture_modes
from msfusion.errors import UserError

INPUTS = (torch.randn(2, 12),)


class Tempered(nn.Module):
    """Four heads, and a temperature of four for training."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.temperature = 4, 4
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).view(-1, self.heads, 8).softmax(-1).flatten(1))
        return out / self.temperature if self.training else out


def test_an_attribute_that_train_mode_alone_reads_is_no_size() -> None:
    narrow = capture(Tempered(), INPUTS).narrow({"a.out": 2})
    assert (narrow.heads, narrow.temperature) == (2, 4)


class Noisy(nn.Module):
    """Drops units by a mask of its own in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        out: Tensor = self.b(hidden * (torch.rand(32) > 0.1) if self.training else hidden)
        return out


def test_operations_of_train_mode_alone_are_cut_along() -> None:
    narrow = capture(Noisy(), INPUTS).narrow({"a.out": 5}).to_empty(device="cpu")
    for training in (True, False):
        assert narrow.train(training)(*INPUTS).shape == (2, 3)


def test_a_look_at_train_mode_draws_nothing() -> None:
    model = nn.Sequential(Noisy(), nn.Dropout(0.5))
    before = torch.get_rng_state()
    capture(model, INPUTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_and_norms_need_no_graph_of_train_mode() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert [graph.training for graph in capture_modes(model, INPUTS, {})] == [False]
    assert [graph.training for graph in capture_modes(Noisy(), INPUTS, {})] == [False, True]


class Chancy(Noisy):
    """Leaves a layer out by chance in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        out: Tensor = self.b(hidden if self.training and torch.rand(()) > 0.5 else hidden.relu())
        return out


def test_a_train_mode_that_depends_on_chance_is_told_of() -> None:
    with pytest.warns(UserWarning, match=r"train mode is taken for .* cannot capture it \(.+\)") as warned:
        assert capture(Chancy(), INPUTS).axes.cuttable == ("a.out",)
    assert "\n" not in str(warned[0].message)


class Enclosed(nn.Module):
    """A layer that the forward reaches through a closure alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.middle, self.b = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.block: Callable[[Tensor], Tensor] = lambda hidden: F.relu(self.middle(hidden))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.block(self.a(x)))
        return out


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_parameters_behind_a_closure_are_refused(device: str) -> None:
    with pytest.raises(UserError, match=r"got middle\.weight through a closure") as caught:
        capture(Enclosed().to(device), INPUTS)
    assert "\n" not in str(caught.value)
