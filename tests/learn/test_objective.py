"""Losses and scores by hand: logits whose softmax is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from msfusion.errors import UserError
from msfusion.learn.objective import Objective, Score, logits_of

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]))
"""Three examples of three classes; the logits are the log of the probabilities."""


def test_loss_is_the_mean_surprise() -> None:
    """Probabilities 1/2, 4/5 and 1/4 of the right classes."""
    loss = Objective().loss(LOGITS, torch.tensor([0, 1, 0]))
    assert float(loss) == pytest.approx((math.log(2) + math.log(5 / 4) + math.log(4)) / 3)


def test_score_counts_and_sums() -> None:
    score = Objective().score(LOGITS, torch.tensor([0, 1, 0]))
    assert score.loss == pytest.approx(math.log(2) + math.log(5 / 4) + math.log(4))
    assert (score.correct, score.count) == (2.0, 3)


def test_tokens_are_scored_one_by_one() -> None:
    """Two sequences of three tokens: the same numbers as six examples."""
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    targets = torch.tensor([[0, 1, 2], [0, 0, 0]])
    apart = Objective().score(logits.flatten(0, 1), targets.flatten())
    together = Objective().score(logits, targets)
    assert together == apart
    assert (together.correct, together.count) == (4.0, 6)
    assert float(Objective().loss(logits, targets)) == pytest.approx(apart.loss / 6)


def test_an_output_with_logits_serves() -> None:
    output = SimpleNamespace(logits=LOGITS)
    assert Objective().score(output, torch.tensor([0, 1, 0])) == Objective().score(
        LOGITS, torch.tensor([0, 1, 0])
    )
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_serve(dtype: torch.dtype) -> None:
    targets = torch.tensor([0, 1, 0])
    assert Objective().score(LOGITS, targets.to(dtype)) == Objective().score(LOGITS, targets)


@pytest.mark.parametrize(("label", "got"), [(3, "3"), (-1, "-1"), (-100, "-100")])
def test_a_label_outside_the_classes_is_refused_with_the_range(label: int, got: str) -> None:
    with pytest.raises(UserError, match=f"labels from 0 to 2.*got {got}; mend the labels"):
        Objective().loss(LOGITS, torch.tensor([0, label, 1]))


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), "integer"),
        (torch.tensor([[0], [1], [2]]), r"\(3, 1\)"),
        (torch.tensor([0, 1]), r"\(2,\)"),
    ],
)
def test_targets_of_the_wrong_form_are_refused(targets: Tensor, words: str) -> None:
    """Targets (B, 1) would be compared with predictions (B,) as a table of B x B."""
    with pytest.raises(UserError, match=words):
        Objective().score(LOGITS, targets)


def test_classes_that_come_second_are_to_be_moved() -> None:
    with pytest.raises(UserError, match=r"last dimension counts the classes.*movedim\(1, -1\)"):
        Objective().loss(torch.zeros(2, 3, 7), torch.zeros(2, 7, dtype=torch.int64))


@pytest.mark.parametrize("output", [(LOGITS,), {"logit": LOGITS}, None, SimpleNamespace(logits=None)])
def test_an_output_without_logits_is_refused(output: object) -> None:
    with pytest.raises(UserError, match="expected a model that returns logits"):
        Objective().loss(output, torch.tensor([0, 1, 0]))


def test_the_logits_of_a_mapping_count() -> None:
    targets = torch.tensor([0, 1, 0])
    assert Objective().score({"hidden": None, "logits": LOGITS}, targets) == Objective().score(
        LOGITS, targets
    )


def test_a_custom_loss_takes_any_output_and_has_no_accuracy() -> None:
    """Squared errors 1, 4 and 9: mean 14/3, sum 14."""
    objective = Objective(nn.MSELoss())
    output, targets = torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.zeros(3)
    assert not objective.classes
    assert objective.loss(output, targets).item() == pytest.approx(14 / 3)
    score = objective.score(output.detach(), targets)
    assert score.loss == pytest.approx(14)
    assert score == Score(score.loss, 0.0, 3)
