"""Which participants train at once, and in which way."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from msfusion.errors import UserError
from msfusion.learn.contrast import Contrast
from msfusion.learn.recorded import Slots
from msfusion.learn.stacks import Stacks
from msfusion.learn.submodels import SubModels
from msfusion.learn.ways import Group, Trained, Unbatchable, Way

Batched = Literal["auto", "on", "off"]
"""Whether participants train at once: "auto" where that is faster, which is on a GPU."""

K = TypeVar("K")
T = TypeVar("T")

_MOST = 32  # participants that train at once
_MEMORY = 0.5  # share of a GPU's memory that they may take by the count of their costs


@dataclass
class Together:
    """Trains participants at once, where settings, device and model allow it.

    Raises UserError where ``batched`` is "on" and something that has no batched form is too: the contrastive
    loss, sub-models that complement one another, optimizers that are kept, buffers that training changes, or
    a model that counts its forward passes.
    compiled: what trains them is compiled.
    changes_buffers: training changes buffers other than those of batch norm.
    complements: sub-models complement one another.
    why_not: why they train one by one where they were to train at once.
    """

    submodels: SubModels
    batched: Batched
    contrast: Contrast | None = None
    keeps_optimizer: bool = False
    compiled: bool = False
    changes_buffers: bool = False
    complements: bool = False
    why_not: str | None = None
    _memory: Mapping[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        on_gpu = self.submodels.device.type == "cuda"
        wanted = self.batched == "on" or (self.batched == "auto" and on_gpu)
        self._off = not wanted
        self._way: Way = (Slots if on_gpu else Stacks)(self.submodels, self.compiled)
        if wanted and self.contrast is not None:
            self._refuse("the contrastive loss has no batched form")
        if wanted and self.keeps_optimizer:
            self._refuse("optimizers that are kept have no batched form")
        if wanted and self.complements:
            self._refuse("sub-models that complement one another have no batched form")
        if wanted and self.changes_buffers:
            self._refuse("training changes buffers of the model")
        if wanted and (names := self.submodels.counters()):
            self._refuse(f"the model's forward counts in {', '.join(names)}")

    @property
    def tries(self) -> bool:
        """Whether participants are to train at once."""
        return not self._off and self.why_not is None

    def groups(self, ones: Sequence[tuple[K, T]], memory: Mapping[K, int]) -> list[list[T]]:
        """Those who train at once, given with their shapes.

        memory: bytes that a participant of each shape takes. What is kept for a shape is kept for later
        rounds, so all that were ever seen count.
        """
        before, self._memory = self._memory, {**self._memory, **memory}
        most = self._most(self._memory)
        if most < self._most(before):
            self._way.forget()
        if not most:
            self._refuse("a sub-model of every shape takes more than half of the GPU's memory")
        if not self.tries:
            return [[one] for _, one in ones]
        if not self._way.mixes:
            return list(by_shape(ones, most))
        each = [one for _, one in ones]
        return [each[start : start + most] for start in range(0, len(each), most)]

    def takes(self, number: int) -> bool:
        """Whether a group of so many trains at once; a single participant may be faster alone."""
        return self.tries and number >= self._way.least

    def _most(self, memory: Mapping[Any, int]) -> int:
        """How many train at once, as each may be of every shape in turn."""
        device = self.submodels.device
        if device.type != "cuda":
            return _MOST
        total = torch.cuda.get_device_properties(device).total_memory
        return min(_MOST, int(_MEMORY * total) // max(1, sum(memory.values())))

    def train(self, group: Group) -> Generator[Trained] | None:
        """What becomes of the sub-models of a group. None, with ``why_not`` said and nothing trained, where
        the model cannot; UserError where it has to."""
        try:
            return self._way.train(group)
        except Unbatchable as error:
            self._way.forget()
            self._refuse(str(error))
            return None

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
