"""What a loss may remember from one call to the next, which processes do not share."""

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import mse_loss

from msfusion.runtimes.state import may_remember, remembered

WEIGHTS = torch.ones(3)
CALLS = 0
SEEN: list[int] = []


def plain(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, WEIGHTS) + mse_loss(output, output)


def through_another(output: Tensor, targets: Tensor, by: float = 1.0) -> Tensor:
    own = lambda: by * plain(output, targets)  # noqa: E731
    return own()


class Stateless:
    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        return plain(output, targets)


@pytest.mark.parametrize(
    "loss",
    [
        None,
        plain,
        through_another,
        partial(through_another, by=2.0),
        Stateless(),
        F.cross_entropy,
        torch.dot,
        nn.CrossEntropyLoss(WEIGHTS),
        lambda output, targets: nn.MSELoss()(output, targets) * np.pi,
    ],
)
def test_functions_and_losses_of_torch_remember_nothing(loss: Any) -> None:
    assert may_remember(loss) is None


def counts_globally() -> None:
    global CALLS
    CALLS += 1


def notes() -> None:
    SEEN.append(1)


def counts_on_itself() -> None:
    counts_on_itself.calls += 1  # type: ignore[attr-defined]


counts_on_itself.calls = 0  # type: ignore[attr-defined]


def counts_inside() -> Callable[[], None]:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    return count


class Anneal:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1

    def method(self) -> None:
        self.calls += 1


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self) -> None:
        self.calls += 1


@pytest.mark.parametrize(
    ("loss", "where"),
    [
        (counts_globally, "the variable CALLS"),
        (counts_inside(), "the variable calls"),
        (counts_on_itself, "attributes of counts_on_itself"),
        (notes, "an object of type list"),
        (Anneal(), "an object of type Anneal"),
        (Anneal().method, "an object of type Anneal"),
        (partial(lambda anneal: anneal(), Anneal()), "an object of type Anneal"),
        (Loss(), "an object of type Loss"),
    ],
)
def test_what_counts_is_seen_before_and_after_a_call(loss: Callable[[], None], where: str) -> None:
    assert may_remember(loss) == where
    before = remembered(loss)
    assert remembered(loss) == before
    loss()
    assert remembered(loss) != before


@pytest.mark.parametrize("held", [itertools.count(), random.Random(0), np.zeros(2)])
def test_what_is_not_known_may_remember(held: Any) -> None:
    assert may_remember(lambda: next(held)) == f"an object of type {type(held).__name__}"
