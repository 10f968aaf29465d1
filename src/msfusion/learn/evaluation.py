"""How good a model is on a dataset."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from msfusion.data import fetch
from msfusion.errors import UserError
from msfusion.learn.local import forward, seeded
from msfusion.learn.objective import Objective


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one dataset: mean loss (nats per example or token) and, where there are
    classes, accuracy in [0, 1]."""

    loss: float
    accuracy: float | None
    examples: int


@torch.no_grad()
def evaluate(
    module: nn.Module, data: Dataset[Any], objective: Objective, batch: int = 256, *, seed: int = 0
) -> Evaluation:
    """Score a model in evaluation mode; it is in training mode afterwards, as in any training loop: modules
    that merge weights or keep results while they are evaluated undo that then.

    What model or data draw follows from ``seed``; the global generators are left as they were.
    """
    examples = len(data)  # type: ignore[arg-type]
    if not examples:
        raise UserError("expected a test set with at least one example, got none")
    device = next(module.parameters()).device
    loss, correct, count = 0.0, 0.0, 0
    with seeded(seed, device), uncompiled(module), _evaluating(module):
        for index in torch.split(torch.arange(examples), batch):
            inputs, targets = fetch(data, index, None)
            score = objective.score(forward(module, inputs.to(device)), targets.to(device))
            loss, correct, count = loss + score.loss, correct + score.correct, count + score.count
    accuracy = correct / count if objective.classes else None
    return Evaluation(loss=loss / count, accuracy=accuracy, examples=examples)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    module.eval()
    try:
        yield
    finally:
        module.train()


def uncompiled(module: nn.Module) -> AbstractContextManager[Any]:
    """Where a compiled module runs its own code: batches of scoring differ in size from those of training."""
    if module._compiled_call_impl is None:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
