"""What settings ask of a model, of participants and of one another: UserError where they cannot work, and a
warning where they do little."""

import warnings
from collections.abc import Sequence

from msfusion.capture import Capture
from msfusion.core import apart
from msfusion.core.axes import Widths
from msfusion.errors import UserError
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective
from msfusion.learn.submodels import SubModels
from msfusion.runtimes.run import Run


def check_trained(captured: Capture) -> None:
    """Somebody has to have something to train."""
    if not captured.trained:
        raise UserError(
            "expected a model with parameters that want a gradient, got none: set requires_grad of those "
            "that are to be trained"
        )


def check_logits(objective: Objective, *, complements: bool) -> None:
    """Sub-models complement one another by their logits."""
    if complements and objective.custom is not None:
        raise UserError(
            "expected a model that returns logits for complement, but the loss is of its own; set "
            "complement to false"
        )


def check_compiled(run: Run, contrast: Contrast | None) -> None:
    """What has no compiled form."""
    if run.compile and contrast:
        raise UserError(
            "expected compile to be off beside the contrastive loss, which has no compiled form; drop one"
        )


def check_batch(train: Train, submodels: SubModels, plans: Sequence[Widths]) -> None:
    """Batch norm has nothing to divide by in a batch of one."""
    if train.batch == 1 and any(submodels.least_batch(plan) > 1 for plan in plans):
        raise UserError(
            "expected train.batch of at least 2, as the model has batch norm, got 1; raise it, or take a "
            "model without batch norm"
        )


def check_apart(run: Run, captured: Capture, plans: Sequence[Widths], *, complements: bool) -> None:
    """What windows that share no unit ask for."""
    plan, *others = plans
    if any(other != plan for other in others):
        raise UserError(
            f"expected participants that all afford the same for {run.method}, got different ones; "
            "give one share or width for all, or take msfusion"
        )
    cycle = apart.sub_models(plan, captured.axes)
    apart.check(captured.axes, plan, captured.owed(plan))
    if complements and cycle > run.rounds:
        warnings.warn(
            f"batches stay the same for {cycle} rounds, until a participant has trained every sub-model, "
            f"and the run has {run.rounds}: it sees no others",
            stacklevel=2,
        )
    if run.train.keep_optimizer:
        warnings.warn(
            f"train.keep_optimizer keeps little with {run.method}: the windows of a participant "
            "share no unit with those of its round before",
            stacklevel=2,
        )


def check_optimizer(train: Train) -> None:
    """What optimizers can do."""
    if train.lr_fan_in is not None and train.optimizer == "sgd":
        raise UserError(
            "expected adam or adamw for train.lr_fan_in, got sgd, whose steps depend on the size of "
            "gradients; set train.optimizer, or leave lr_fan_in out"
        )
    if train.keep_optimizer and train.optimizer == "sgd" and not train.momentum:
        raise UserError(
            "expected an optimizer with a state for train.keep_optimizer, got sgd without momentum; set "
            "keep_optimizer to false or train.momentum above 0"
        )


def head_of(captured: Capture, objective: Objective) -> dict[str, int]:
    """Parameters with a dimension of classes; raises UserError where there are none."""
    head = captured.head() if objective.classes else {}
    if not head:
        why = (
            "no parameter is of the model's outputs alone" if objective.classes else "the loss is of its own"
        )
        raise UserError(f"expected a model with classes for mask_unseen, but {why}; leave mask_unseen off")
    return head


def bias_of(captured: Capture, objective: Objective, config: Train) -> str:
    """The parameter that is added to the logits; raises UserError where there is none, or where it would not
    train as if the logits were adjusted."""
    bias = captured.head_bias() if objective.classes else None
    if bias is None:
        why = "its output is made otherwise" if objective.classes else "the loss is of its own"
        raise UserError(
            "expected a model whose output is that of a linear layer with a bias for logit_adjustment, but "
            f"{why}; leave it at 0"
        )
    if config.weight_decay:
        raise UserError(
            "expected train.weight_decay of 0 beside logit_adjustment, which it would draw back, got "
            f"{config.weight_decay}; set one of them to 0"
        )
    return bias
