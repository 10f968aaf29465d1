"""Several participants at once in one program, on stacks of their sub-models."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from msfusion.capture.graph import named_tensors
from msfusion.core.axes import Widths
from msfusion.core.scale import scale_, undo_
from msfusion.data import fetch
from msfusion.learn.batched import Stack, program, train_together, without_running_statistics
from msfusion.learn.local import Train, seeded
from msfusion.learn.objective import Objective
from msfusion.learn.submodels import Plan, SubModels, compiler, plan_of
from msfusion.learn.ways import Group, Trained


@dataclass
class Stacks:
    """Trains several participants of equal shape in one program.

    compiled: the program is compiled, for each number of participants and shape of a batch.
    """

    submodels: SubModels
    compiled: bool = False
    least = 2
    mixes = False
    _stacks: dict[Plan, Stack] = field(default_factory=dict)

    def train(self, group: Group) -> Generator[Trained]:
        widths, data, config = group.widths[0], group.data, group.config
        stack = self._room(widths, len(data))
        for place in range(len(data)):
            group.fill(place, stack.of(place))
        factors = self.submodels.factors(widths)
        scale_(stack.tensors, factors)
        stack = self._known(widths, stack, data[0], group.objective, config)
        rates = self.submodels.rates(widths, config)
        losses = train_together(stack, data, config, group.lr, group.seeds, rates)
        spare = {name: tensor.detach() for name, tensor in named_tensors(stack.module).items()}
        rounded = self.submodels.rounded(widths)
        for place in range(len(data)):
            if rounded:
                group.fill(place, spare)
            undo_(stack.of(place), factors, spare, rounded)
        return ((stack.values(place), loss) for place, loss in enumerate(losses))

    def forget(self) -> None:
        self._stacks.clear()

    def _room(self, widths: Widths, number: int) -> Stack:
        """Room for so many sub-models; it is that of the last call with these widths, if it is large
        enough."""
        plan = plan_of(widths)
        kept = self._stacks.get(plan)
        if kept is None:
            kept = Stack(without_running_statistics(self.submodels.module(widths)), {}, None)
        if not kept.tensors or len(next(iter(kept.tensors.values()))) < number:
            tensors = {
                name: torch.empty((number, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
                for name, tensor in named_tensors(kept.module).items()
            }
            kept = self._stacks[plan] = replace(kept, tensors=tensors)
        return replace(kept, tensors={name: t[:number] for name, t in kept.tensors.items()})

    def _known(
        self, widths: Widths, stack: Stack, data: Dataset[Any], objective: Objective, config: Train
    ) -> Stack:
        """The stack with its program, which is made once per width plan."""
        if stack.program is None:
            first = torch.arange(min(config.batch, len(data)))  # type: ignore[arg-type]
            with seeded(0, torch.device("cpu")):  # datasets may draw
                batch = fetch(data, first, None)
            inputs, targets = (part.to(self.submodels.device) for part in batch)
            backend = compiler() if self.compiled else None
            made = program(stack, inputs, targets, objective, config, backend)
            self._stacks[plan_of(widths)] = replace(self._stacks[plan_of(widths)], program=made)
            stack = replace(stack, program=made)
        return stack
