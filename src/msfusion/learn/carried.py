"""What passes from one round to the next beside the full model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msfusion.core.axes import Selection
from msfusion.core.merge import Contribution


@dataclass(frozen=True)
class Carried:
    """Never larger than a sub-model for each participant and entry.

    previous: participant -> what it handed over when it last trained; kept for the contrastive loss only.
    late: what has not arrived in its round and is to be merged in the next, ascending by participant.
    """

    previous: Mapping[int, Contribution] = field(default_factory=dict)
    late: tuple[Contribution, ...] = ()

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a checkpoint."""
        kinds = {"previous": self.previous, "late": {one.participant: one for one in self.late}}
        return {
            f"{kind}/{number}/{key}": tensor
            for kind, contributions in kinds.items()
            for number, contribution in contributions.items()
            for key, tensor in _packed(contribution, kind)
        }

    @staticmethod
    def restored(state: Mapping[str, Tensor], device: torch.device) -> "Carried":
        """What ``state`` gave; other tensors are passed over."""
        late = _unpacked(state, "late/", device)
        return Carried(_unpacked(state, "previous/", device), tuple(late.values()))


def _packed(contribution: Contribution, kind: str) -> Iterator[tuple[str, Tensor]]:
    yield "weight", torch.tensor(contribution.weight, dtype=torch.float64)
    for axis, units in contribution.selection.items():
        yield f"units/{axis}", torch.tensor(units, dtype=torch.int64)
    for name, (dimension, kept) in contribution.only.items():
        yield f"only/{name}", torch.tensor([(dimension, 0), *kept], dtype=torch.int64)
    for name, value in contribution.values.items():
        # A late contribution may also be the previous one; a file holds no tensor twice.
        yield f"values/{name}", value.clone() if kind == "late" else value


def _unpacked(state: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[int, Contribution]:
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            number, _, key = name.removeprefix(prefix).partition("/")
            parts.setdefault(int(number), {})[key] = tensor
    return {number: _contribution(number, own, device) for number, own in sorted(parts.items())}


def _contribution(number: int, parts: Mapping[str, Tensor], device: torch.device) -> Contribution:
    units = {key[6:]: tensor.tolist() for key, tensor in parts.items() if key.startswith("units/")}
    selection: Selection = {axis: tuple((a, b) for a, b in runs) for axis, runs in units.items()}
    values = {key[7:]: tensor.to(device) for key, tensor in parts.items() if key.startswith("values/")}
    only = {key[5:]: tensor.tolist() for key, tensor in parts.items() if key.startswith("only/")}
    return Contribution(
        number,
        selection,
        values,
        float(parts["weight"]),
        {name: (first[0], tuple((a, b) for a, b in kept)) for name, (first, *kept) in only.items()},
    )
