"""Which participants train at once, and the stacks that they train in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset

from msfusion.core.axes import Widths
from msfusion.data import fetch
from msfusion.errors import UserError
from msfusion.learn.batched import (
    Batched,
    Stack,
    Unbatchable,
    program,
    train_together,
    without_running_statistics,
)
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective
from msfusion.learn.submodels import Plan, SubModels, compiler, plan_of, tensors_of

T = TypeVar("T")

_MOST = 32  # participants that train at once
_MEMORY = 0.5  # share of a GPU's memory that they may take by the count of their costs


@dataclass
class Together:
    """Trains participants of equal shape at once, where settings, device and model allow it.

    Raises UserError where ``batched`` is "on" and the contrastive loss, which has no batched form, is too.
    compiled: what trains them is compiled, for each number of participants and shape of a batch.
    why_not: why they train one by one where they were to train at once.
    """

    submodels: SubModels
    batched: Batched
    contrast: Contrast | None = None
    compiled: bool = False
    why_not: str | None = None
    _stacks: dict[Plan, Stack] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = self.batched == "on" or (self.batched == "auto" and self.submodels.device.type == "cuda")
        self._off = not wanted
        if wanted and self.contrast is not None:
            self._refuse("the contrastive loss has no batched form")

    @property
    def tries(self) -> bool:
        """Whether participants of equal shape are to train at once."""
        return not self._off and self.why_not is None

    def most(self, memory: int) -> int:
        """How many participants of so many bytes each train at once; the same in every round."""
        device = self.submodels.device
        if device.type != "cuda":
            return _MOST
        total = torch.cuda.get_device_properties(device).total_memory
        return max(1, min(_MOST, int(_MEMORY * total) // max(1, memory)))

    def stack(self, widths: Widths, number: int) -> Stack:
        """Room for so many sub-models; it is that of the last call with these widths, if it is large
        enough."""
        plan = plan_of(widths)
        kept = self._stacks.get(plan)
        if kept is None:
            kept = Stack(without_running_statistics(self.submodels.module(widths)), {}, None)
        if not kept.tensors or len(next(iter(kept.tensors.values()))) < number:
            tensors = {
                name: torch.empty((number, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
                for name, tensor in tensors_of(kept.module).items()
            }
            kept = self._stacks[plan] = replace(kept, tensors=tensors)
        return replace(kept, tensors={name: t[:number] for name, t in kept.tensors.items()})

    def train(
        self,
        widths: Widths,
        stack: Stack,
        data: Sequence[Dataset[Any]],
        objective: Objective,
        config: Train,
        lr: float,
        seeds: Sequence[int],
    ) -> list[float] | None:
        """Train a filled stack in place: mean losses, and the scale rule undone. None, with ``why_not`` said
        and nothing trained, where the model cannot; UserError where it has to."""
        factors = self.submodels.factors(widths)
        scaled = [stack.tensors[name] for name in factors]
        if scaled:
            torch._foreach_mul_(scaled, list(factors.values()))
        try:
            stack = self._known(widths, stack, data[0], objective, config)
            losses = train_together(stack, data, config, lr, seeds)
        except Unbatchable as error:
            self._stacks.clear()
            self._refuse(str(error))
            return None
        if scaled:
            torch._foreach_div_(scaled, list(factors.values()))
        return losses

    def _known(
        self, widths: Widths, stack: Stack, data: Dataset[Any], objective: Objective, config: Train
    ) -> Stack:
        """The stack with its program, which is made once per width plan."""
        if stack.program is None:
            first = torch.arange(min(config.batch, len(data)))  # type: ignore[arg-type]
            inputs, targets = (part.to(self.submodels.device) for part in fetch(data, first, None))
            backend = compiler() if self.compiled else None
            made = program(stack, inputs, targets, objective, config, backend)
            self._stacks[plan_of(widths)] = replace(self._stacks[plan_of(widths)], program=made)
            stack = replace(stack, program=made)
        return stack

    def _refuse(self, reason: str) -> None:
        if self.batched == "on":
            raise UserError(
                f"expected a run whose participants can train at once (batched=on), but {reason}; "
                "set batched to auto or off"
            )
        self.why_not = reason


def by_shape(ones: Sequence[tuple[object, T]], most: int) -> Iterator[list[T]]:
    """Groups of those with equal keys, at most so many each, in the order of their first."""
    groups: dict[object, list[T]] = {}
    for key, one in ones:
        groups.setdefault(key, []).append(one)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]
