"""Task losses: pure functions of a model's output and the targets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from msfusion.errors import UserError

_NO_LABEL = -torch.iinfo(torch.int64).max  # none is passed over: -100, torch's default, is a mistake


@dataclass(frozen=True)
class Score:
    """Sums over a batch: loss, correct predictions, and the number of targets."""

    loss: float
    correct: float
    count: int


@dataclass(frozen=True)
class Objective:
    """What is minimised and what is reported.

    custom: (output, targets) -> mean loss; None is the cross-entropy of logits (..., classes) against
    integer targets (...), which serves images and next tokens alike.
    language: targets are next tokens, for which the loss says more than the accuracy.
    """

    custom: Callable[[Any, Tensor], Tensor] | None = None
    language: bool = False

    @property
    def classes(self) -> bool:
        """Whether there is an accuracy."""
        return self.custom is None

    @property
    def metric(self) -> Literal["accuracy", "loss"]:
        """By which of its scores a model is judged."""
        return "accuracy" if self.classes and not self.language else "loss"

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        if self.custom is not None:
            return self.custom(output, targets)
        logits = logits_of(output)
        _check_targets(logits, targets)
        try:
            return F.cross_entropy(logits.flatten(0, -2), targets.flatten().long(), ignore_index=_NO_LABEL)
        except IndexError:  # found by the kernel: a look of our own would be two more passes and a stall
            raise _out_of_range(logits, targets) from None

    def score(self, output: Any, targets: Tensor) -> Score:
        """Loss and correct predictions of a batch, summed."""
        if self.custom is not None:
            return Score(float(self.custom(output, targets)) * len(targets), 0.0, len(targets))
        logits = logits_of(output)
        loss = self.loss(logits, targets)
        correct = (logits.argmax(-1) == targets).sum()
        return Score(float(loss) * targets.numel(), float(correct), targets.numel())


def logits_of(output: Any) -> Tensor:
    """The logits of a plain tensor or of a Hugging Face output."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"expected a model that returns logits or an object with .logits, got {type(output).__name__}; "
            "give a loss function of your own"
        )
    return logits


def _check_targets(logits: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point() or targets.shape != logits.shape[:-1]:
        raise UserError(
            f"expected integer labels of shape {tuple(logits.shape[:-1])}, as the model returns logits of "
            f"shape {tuple(logits.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}; "
            "return such labels from the dataset or give a loss function of your own"
        )


def _out_of_range(logits: Tensor, targets: Tensor) -> UserError:
    low, high = int(targets.min()), int(targets.max())
    return UserError(
        f"expected labels from 0 to {logits.shape[-1] - 1}, as the model has {logits.shape[-1]} outputs, "
        f"got {low if low < 0 else high}"
    )
