"""Task losses: pure functions of a model's output and the targets."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
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
    integer targets (...), which serves images and next tokens alike. It sees no model: the one that trains is
    a narrow copy.
    language: targets are next tokens, for which the loss says more than the accuracy.
    logits_alone: of an output with logits and more, ``custom`` reads the logits alone, so that the model may
    be cut where the rest of it is made.
    Raises UserError for a loss that cannot be called, or that would have to be trained itself.
    """

    custom: Callable[[Any, Tensor], Tensor] | None = None
    language: bool = False
    logits_alone: bool = False

    def __post_init__(self) -> None:
        if self.custom is None:
            return
        if isinstance(self.custom, type) or not callable(self.custom):
            is_class = isinstance(self.custom, type)
            got = f"the class {self.custom.__name__}" if is_class else repr(self.custom)
            raise UserError(
                f"expected the loss as a function (output, targets) -> mean loss, got {got}: give "
                f"{'an object of it' if is_class else 'such a function'}"
            )
        own = self.custom.named_parameters() if isinstance(self.custom, nn.Module) else ()
        if wanted := [name for name, parameter in own if parameter.requires_grad]:
            raise UserError(
                f"expected a loss without parameters that want a gradient, as nobody trains them, got "
                f"{wanted[0]} in {type(self.custom).__name__}: move them into the model, or set "
                "requires_grad to False"
            )

    @property
    def classes(self) -> bool:
        """Whether there is an accuracy."""
        return self.custom is None

    @property
    def reads_logits(self) -> bool:
        """Whether nothing else of an output matters that has logits."""
        return self.custom is None or self.logits_alone

    @property
    def metric(self) -> Literal["accuracy", "loss"]:
        """By which of its scores a model is judged."""
        return "accuracy" if self.classes and not self.language else "loss"

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        if self.custom is not None:
            return _with_gradient(self._custom(output, targets))
        logits = logits_of(output)
        _check_targets(logits, targets)
        try:
            return F.cross_entropy(logits.flatten(0, -2), targets.flatten().long(), ignore_index=_NO_LABEL)
        except IndexError:  # found by the kernel: a look of our own would be two more passes and a stall
            raise _out_of_range(logits, targets) from None

    def score(self, output: Any, targets: Tensor) -> Score:
        """Loss and correct predictions of a batch, summed."""
        if self.custom is not None:
            return Score(float(self._custom(output, targets)) * len(targets), 0.0, len(targets))
        logits = logits_of(output)
        loss = self.loss(logits, targets)
        correct = (logits.argmax(-1) == targets).sum()
        return Score(float(loss) * targets.numel(), float(correct), targets.numel())

    def _custom(self, output: Any, targets: Tensor) -> Tensor:
        assert self.custom is not None
        loss = self.custom(output, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(
                "expected the loss to return a scalar tensor, the mean over the batch, got "
                f"{got}: return such a tensor, for instance loss.mean()"
            )
        return loss


def _with_gradient(loss: Tensor) -> Tensor:
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError(
            "expected the loss to return a tensor with a gradient, got one without: compute it from the "
            "model's output by operations of torch, without detach() or item()"
        )
    return loss


@contextmanager
def no_gradients_in(model: nn.Module) -> Iterator[None]:
    """Where no loss may reach the parameters of a model that does not train itself: UserError from the
    backward pass that would leave a gradient in one, here or in a process that is forked from this one."""

    def refuse(gradient: Tensor) -> None:
        raise reads_a_model()

    hooks = [p.register_hook(refuse) for p in model.parameters() if p.requires_grad]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reads_a_model() -> UserError:
    """What is wrong with a loss that wants gradients for others than the sub-model that trains."""
    return UserError(
        "expected a loss of (output, targets) alone, got one that reads parameters of a model, which would "
        "not change the sub-models that train: return what it needs from the model's forward, or set "
        "train.weight_decay"
    )


def logits_of(output: Any) -> Tensor:
    """The logits of a plain tensor, of a mapping that has them or of a Hugging Face output."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    logits = output if isinstance(output, Tensor) else named
    if not isinstance(logits, Tensor):
        raise UserError(
            "expected a model that returns logits, or a dict or an object with them as 'logits', got "
            f"{type(output).__name__}; give a loss function of your own"
        )
    return logits


def _check_targets(logits: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point() or targets.shape != logits.shape[:-1]:
        todo = "return such labels from the dataset or give a loss function of your own"
        if targets.ndim > 1 and targets.shape == (len(logits), *logits.shape[2:]):
            todo = "move the classes last, by logits.movedim(1, -1) in the model's forward"
        raise UserError(
            f"expected integer labels of shape {tuple(logits.shape[:-1])}, as the model returns logits of "
            f"shape {tuple(logits.shape)}, whose last dimension counts the classes, got {targets.dtype} of "
            f"shape {tuple(targets.shape)}; {todo}"
        )


def _out_of_range(logits: Tensor, targets: Tensor) -> UserError:
    low, high = int(targets.min()), int(targets.max())
    return UserError(
        f"expected labels from 0 to {logits.shape[-1] - 1}, as the model has {logits.shape[-1]} outputs, "
        f"got {low if low < 0 else high}; mend the labels, or give a loss of your own where some are to be "
        "passed over"
    )
