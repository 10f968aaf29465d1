"""What sub-models that complement one another hear, by hand, and runs of them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from msfusion.errors import UserError
from msfusion.learn.complement import Complement, heard_like

TARGETS = torch.tensor([0, 2, 1])
LIKE = heard_like(torch.empty(4, 3), steps=2)


def logits(seed: int) -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def spoken(complement: Complement, *steps: Tensor) -> dict[str, Tensor]:
    for step in steps:
        complement.loss(step, TARGETS)
    return complement.said(LIKE)


def test_the_first_of_a_cycle_is_on_its_own() -> None:
    own = logits(0)
    assert torch.equal(Complement().loss(own, TARGETS), F.cross_entropy(own, TARGETS))


def test_the_third_hears_both_before_it_step_by_step() -> None:
    first = spoken(Complement(), logits(1), logits(2))
    second = spoken(Complement(heard=first), logits(3), logits(4))
    third = Complement(heard=second)
    for step, (one, two) in enumerate([(1, 3), (2, 4)]):
        own = logits(10 + step)
        mean = ((logits(one) + logits(two) + own) / 3).detach().requires_grad_()
        expected = F.cross_entropy(mean, TARGETS)
        loss = third.loss(own, TARGETS)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        loss.backward()
        expected.backward()
        assert own.grad is not None
        assert mean.grad is not None
        assert torch.allclose(own.grad, mean.grad, atol=1e-6)  # not a third of it


def test_what_is_wrong_in_others_counts_more() -> None:
    """Two classes alike to the sub-model; the others are sure of the wrong one."""
    wrong = torch.tensor([[0.0, 4.0]])
    like = heard_like(wrong, steps=1)
    others = Complement()
    others.loss(wrong, torch.tensor([0]))
    own = torch.zeros(1, 2, requires_grad=True)
    Complement(heard=others.said(like)).loss(own, torch.tensor([0])).backward()
    alone = torch.zeros(1, 2, requires_grad=True)
    Complement().loss(alone, torch.tensor([0])).backward()
    assert own.grad is not None
    assert alone.grad is not None
    assert own.grad[0, 0] < 1.7 * alone.grad[0, 0] < 0


def test_another_cycle_begins_anew() -> None:
    first = spoken(Complement(cycle=1), logits(1), logits(2))
    assert Complement(heard=first, cycle=1).models == 1
    assert Complement(heard=first, cycle=2).models == 0


def test_what_is_said_has_the_shapes_that_were_promised() -> None:
    """Of participants with less than a batch as well."""
    said = spoken(Complement(), logits(1), logits(2))
    assert {name: (t.shape, t.dtype) for name, t in said.items()} == {
        name: (t.shape, t.dtype) for name, t in LIKE.items()
    }


def test_logits_of_another_shape_are_refused() -> None:
    heard = spoken(Complement(), logits(1), logits(2))
    with pytest.raises(UserError, match=r"logits of one shape in all rounds, got .2, 4. after .2, 3."):
        Complement(heard=heard).loss(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
