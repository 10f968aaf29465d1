"""Losses of the user's own: what they may look at, what they may return, and what they may remember."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from blobs import TEST, net, participants, settings
from torch import Tensor, nn
from torch.nn import functional as F

import msfusion
from msfusion import UserError

MORE_WORKERS = pytest.param({"workers": 2}, marks=[pytest.mark.slow, pytest.mark.processes])


def play(loss: Any, model: nn.Module | None = None, **changes: Any) -> msfusion.Result:
    run = settings(**{"workers": 1, "rounds": 1} | changes)
    return msfusion.simulate(model or net(norm=False, dropout=0.0), participants(), TEST, run, loss=loss)


# --- what it looks at


@pytest.mark.parametrize("changes", [{}, {"batched": "on"}, MORE_WORKERS])
def test_a_loss_that_reads_the_full_model_is_refused(changes: dict[str, Any]) -> None:
    """Participants train narrow copies, which a penalty on the user's model would not reach."""
    model = net(norm=False, dropout=0.0)

    def penalised(output: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(output, targets) + sum(p.abs().sum() for p in model.parameters())

    with pytest.raises(UserError, match=r"\(output, targets\) alone, got one that reads parameters"):
        play(penalised, model, **changes)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_that_the_user_has_left_and_uses_the_model_for_later_stay() -> None:
    model = net(norm=False, dropout=0.0)
    model.head.bias.grad = torch.ones(3)
    play(nn.CrossEntropyLoss(), model)
    assert torch.equal(model.head.bias.grad, torch.ones(3))
    model.head.bias.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(model.head.bias.grad, torch.full((3,), 2.0))


class Scaled(nn.Module):
    """The logits times a factor of its own."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()), requires_grad=trained)

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.factor * output, targets)


def test_a_loss_that_would_have_to_be_trained_is_refused() -> None:
    with pytest.raises(UserError, match="nobody trains them, got factor in Scaled"):
        play(Scaled(trained=True))
    play(Scaled(trained=False))


# --- what it returns


def plain(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets)


@pytest.mark.parametrize("batched", ["off", "on"])
@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"got one of shape \(16,\)"),
        (lambda output, targets: plain(output, targets)[None], r"got one of shape \(1,\)"),
        (lambda output, targets: 1.0, "got float"),
        (lambda output, targets: (plain(output, targets), 1), "got tuple"),
        (lambda output, targets: None, "got NoneType"),
        (lambda output, targets: plain(output.detach(), targets), "with a gradient, got one without"),
    ],
)
def test_a_loss_that_is_no_scalar_with_a_gradient_is_refused(
    loss: Callable[..., Any], got: str, batched: str
) -> None:
    data = [participants()[0]] * 2
    with pytest.raises(UserError, match=f"expected the loss to return a .*{got}"):
        msfusion.simulate(net(norm=False), data, TEST, settings(workers=1, batched=batched), loss=loss)


@pytest.mark.parametrize(("loss", "got"), [(nn.MSELoss, "the class MSELoss"), ("mse", "'mse'")])
def test_what_is_no_function_is_refused_at_the_start(loss: Any, got: str) -> None:
    with pytest.raises(UserError, match=rf"a function \(output, targets\) -> mean loss, got {got}"):
        play(loss)
