"""Sub-models that make up for what the others get wrong.

Where windows share no unit, the full model's logits are the mean of its sub-models'. Left alone, each learns
the same task, and the full model is an ensemble of small ones. Here a participant trains its sub-model so
that the mean is right: it keeps the logits of those that it trained in the rounds before, on the same
batches, and the loss is that of the mean of these and its own. Once it has been through all sub-models, it
goes on to other batches. No value more is sent, and no pass more is run. (Ours; the loss is that of an
ensemble trained jointly, as in negative correlation learning, Liu and Yao 1999, with logits of some rounds
ago in place of the others'.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from msfusion.errors import UserError
from msfusion.learn.objective import Objective, logits_of


@dataclass(frozen=True)
class Complement(Objective):
    """The task's loss of the mean of the logits of a round's sub-model and of those before it.

    heard: what ``said`` gave in the participant's round before this one; zeros where there was none.
    cycle: which turn through all sub-models a round belongs to, from 1; what was heard in another does not
        count.
    """

    heard: Mapping[str, Tensor] = field(default_factory=dict)
    cycle: int = 1
    _steps: list[Tensor] = field(default_factory=list)

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Of the next step's batch."""
        logits = logits_of(output)
        total = logits.detach()
        if self.models:
            before = self.heard["logits"][len(self._steps)][: len(logits)].to(total)
            if before.shape != total.shape:
                raise UserError(
                    f"expected logits of one shape in all rounds, got {tuple(total.shape)} after "
                    f"{tuple(before.shape)}; set complement to false"
                )
            total = total + before
            # The mean's value, and a gradient as if the sub-model were alone: rates mean what they mean.
            logits = total / (self.models + 1) + (logits - logits.detach())
        self._steps.append(total)
        return super().loss(logits, targets)

    @property
    def models(self) -> int:
        """How many other sub-models were heard."""
        return int(self.heard["models"]) if self.heard and int(self.heard["cycle"]) == self.cycle else 0

    def said(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is to be heard in the next round: sums of logits per step, of how many sub-models, and when.

        like: tensors of the shapes and types that it is to have, from ``heard_like``.
        """
        logits = torch.zeros_like(like["logits"], device=self._steps[0].device)
        for into, total in zip(logits, self._steps, strict=True):
            into[: len(total)] = total
        return {"logits": logits, "models": torch.tensor(self.models + 1), "cycle": torch.tensor(self.cycle)}


def heard_like(logits: Tensor, steps: int) -> dict[str, Tensor]:
    """Tensors like those of ``said``, on the meta device.

    logits: of a whole batch.
    """
    number = torch.empty((), dtype=torch.int64, device="meta")
    shape = (steps, *logits.shape)
    return {
        "logits": torch.empty(shape, dtype=logits.dtype, device="meta"),
        "models": number,
        "cycle": number,
    }
