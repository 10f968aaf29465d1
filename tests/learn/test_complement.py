"""What sub-models that complement one another hear, by hand, and runs of them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from msfusion.errors import UserError
from msfusion.learn.complement import Complement, heard_like

TARGETS = torch.tensor([0, 2, 1])
LIKE = heard_like(torch.empty(4, 3), steps=2)
Heard = dict[str, Tensor]


def logits(seed: int) -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def complement(heard: Heard | None = None, cycle: int = 1, like: Heard = LIKE) -> Complement:
    said = torch.zeros_like(like["logits"], device="cpu")
    return Complement(said=said, heard=heard or {}, cycle=cycle)


def spoken(one: Complement, *steps: Tensor) -> Heard:
    for step in steps:
        one.loss(step, TARGETS)
    return one.memory()


def test_the_first_of_a_cycle_is_on_its_own() -> None:
    own = logits(0)
    assert torch.equal(complement().loss(own, TARGETS), F.cross_entropy(own, TARGETS))


def test_the_third_hears_both_before_it_step_by_step() -> None:
    first = spoken(complement(), logits(1), logits(2))
    third = complement(spoken(complement(first), logits(3), logits(4)))
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
    like = heard_like(torch.empty(1, 2), steps=1)
    others, right = complement(like=like), torch.tensor([0])
    others.loss(torch.tensor([[0.0, 4.0]]), right)
    own, alone = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    complement(others.memory(), like=like).loss(own, right).backward()
    complement(like=like).loss(alone, right).backward()
    assert own.grad is not None
    assert alone.grad is not None
    assert own.grad[0, 0] < 1.7 * alone.grad[0, 0] < 0


def test_another_cycle_begins_anew() -> None:
    first = spoken(complement(), logits(1), logits(2))
    assert complement(first, cycle=1).models == 1
    assert complement(first, cycle=2).models == 0


def test_what_is_said_has_the_shapes_that_were_promised() -> None:
    """Of participants with less than a batch as well."""
    said = spoken(complement(), logits(1), logits(2))
    assert {name: (t.shape, t.dtype) for name, t in said.items()} == {
        name: (t.shape, t.dtype) for name, t in LIKE.items()
    }


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"logits of shape \(3,\) per example, .*, got \(4,\); set"):
        complement().loss(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
