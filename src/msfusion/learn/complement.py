"""Sub-models that make up for what the others get wrong.

Where windows share no unit, the full model's logits are the mean of its sub-models'. Left alone, each learns
the same task, and the full model is an ensemble of small ones. Here a participant trains its sub-model so
that the mean is right: it keeps the logits of those that it trained in the rounds before, on the same
batches, and the loss is that of the mean of these and its own. Once it has been through all sub-models, it
goes on to other batches. No value more is sent, and no pass more is run. (Ours; the loss is that of an
ensemble trained jointly, as in negative correlation learning, Liu and Yao 1999, with logits of some rounds
ago in place of the others'.)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from msfusion.errors import UserError
from msfusion.learn.objective import Objective, logits_of


@dataclass(frozen=True)
class Complement(Objective):
    """The task's loss of the mean of the logits of a round's sub-model and of those before it.

    said: where the sums of logits of each step are put, for the next round; of the shape that ``heard_like``
        says.
    heard: what ``memory`` gave in the participant's round before this one; zeros where there was none.
    cycle: which turn through all sub-models a round belongs to, from 1; what was heard in another does not
        count.
    """

    said: Tensor = field(kw_only=True)
    heard: Mapping[str, Tensor] = field(default_factory=dict)
    cycle: int = 1
    _step: Iterator[int] = field(default_factory=count)

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Of the next step's batch."""
        logits, step = logits_of(output), next(self._step)
        if logits.shape[1:] != self.said.shape[2:]:
            raise UserError(
                f"expected logits of shape {tuple(self.said.shape[2:])} per example, as for the example "
                f"inputs, got {tuple(logits.shape[1:])}; set complement to false"
            )
        total = logits.detach().to(self.said)
        if self.models:
            total = total + self.heard["logits"][step, : len(logits)].to(total)
            # The mean's value, and a gradient as if the sub-model were alone: rates mean what they mean.
            logits = total / (self.models + 1) + (logits - logits.detach())
        self.said[step, : len(total)] = total
        return super().loss(logits, targets)

    @property
    def models(self) -> int:
        """How many other sub-models were heard."""
        return int(self.heard["models"]) if self.heard and int(self.heard["cycle"]) == self.cycle else 0

    def memory(self) -> dict[str, Tensor]:
        """What is to be heard in the next round: sums of logits per step, of how many, and in which cycle."""
        models, cycle = torch.tensor(self.models + 1), torch.tensor(self.cycle)
        return {"logits": self.said, "models": models, "cycle": cycle}


def heard_like(logits: Tensor, steps: int) -> dict[str, Tensor]:
    """Tensors like those of ``memory``, on the meta device.

    logits: of a whole batch.
    """
    number = torch.empty((), dtype=torch.int64, device="meta")
    sums = torch.empty((steps, *logits.shape), dtype=logits.dtype, device="meta")
    return {"logits": sums, "models": number, "cycle": number}
