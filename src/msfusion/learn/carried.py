"""What passes from one round to the next beside the full model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msfusion.core.axes import Selection
from msfusion.core.merge import Contribution
from msfusion.learn.memory import Memory


@dataclass(frozen=True)
class Carried:
    """Nothing here grows with the full model.

    previous: participant -> what it keeps from when it last trained.
    late: what has not arrived in its round and is to be merged in the next, ascending by participant.
    """

    previous: Mapping[int, Memory] = field(default_factory=dict)
    late: tuple[Contribution, ...] = ()

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a checkpoint."""
        kept = {f"previous/{number}/": _remembered(memory) for number, memory in self.previous.items()}
        late = {f"late/{one.participant}/": _packed(one) for one in self.late}
        return {prefix + key: tensor for prefix, parts in (kept | late).items() for key, tensor in parts}

    @staticmethod
    def restored(state: Mapping[str, Tensor], device: torch.device) -> "Carried":
        """What ``state`` gave; other tensors are passed over."""
        previous = {
            number: Memory.unpacked(_selection(parts), {key: t.to(device) for key, t in parts.items()})
            for number, parts in _by_participant(state, "previous/")
        }
        late = [_contribution(n, parts, device) for n, parts in _by_participant(state, "late/")]
        return Carried(previous, tuple(late))


def _remembered(memory: Memory) -> Iterator[tuple[str, Tensor]]:
    yield from _units(memory.windows)
    yield from memory.packed().items()


def _packed(contribution: Contribution) -> Iterator[tuple[str, Tensor]]:
    yield "weight", torch.tensor(contribution.weight, dtype=torch.float64)
    yield from _units(contribution.selection)
    for name, (dimension, kept) in contribution.only.items():
        yield f"only/{name}", torch.tensor([(dimension, 0), *kept], dtype=torch.int64)
    for name, value in contribution.values.items():
        yield f"values/{name}", value


def _units(selection: Selection) -> Iterator[tuple[str, Tensor]]:
    for axis, units in selection.items():
        yield f"units/{axis}", torch.tensor(units, dtype=torch.int64)


def _by_participant(state: Mapping[str, Tensor], prefix: str) -> list[tuple[int, dict[str, Tensor]]]:
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            number, _, key = name.removeprefix(prefix).partition("/")
            parts.setdefault(int(number), {})[key] = tensor
    return sorted(parts.items())


def _contribution(number: int, parts: Mapping[str, Tensor], device: torch.device) -> Contribution:
    only = {name: tensor.tolist() for name, tensor in below("only/", parts).items()}
    return Contribution(
        number,
        _selection(parts),
        {name: value.to(device) for name, value in below("values/", parts).items()},
        float(parts["weight"]),
        {name: (first[0], tuple((a, b) for a, b in kept)) for name, (first, *kept) in only.items()},
    )


def _selection(parts: Mapping[str, Tensor]) -> Selection:
    units = {axis: tensor.tolist() for axis, tensor in below("units/", parts).items()}
    return {axis: tuple((a, b) for a, b in runs) for axis, runs in units.items()}


def below(prefix: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with the prefix, by the rest of these."""
    return {key.removeprefix(prefix): t for key, t in parts.items() if key.startswith(prefix)}
