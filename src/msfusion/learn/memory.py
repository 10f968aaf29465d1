"""What a participant keeps from when it last trained; it stays with the participant."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from msfusion.core.axes import AxisMap, Selection
from msfusion.core.moved import KindsOf, moved

_PARTS = ("values", "optimizer", "heard")


@dataclass(frozen=True)
class Memory:
    """Never larger than a sub-model with the state of its optimizer, and the logits of a round's batches.

    windows: the units that it trained.
    values: what it handed over, by parameter; empty without the contrastive loss.
    optimizer: state of its optimizer, as ``Optimizer.state`` gave it; empty where that is made anew.
    heard: as ``Complement.said`` gave it; empty where sub-models do not complement one another.
    """

    windows: Selection
    values: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    heard: Mapping[str, Tensor] = field(default_factory=dict)

    def packed(self) -> dict[str, Tensor]:
        """All its tensors."""
        return {f"{part}/{name}": t for part in _PARTS for name, t in getattr(self, part).items()}

    @staticmethod
    def unpacked(windows: Selection, tensors: Mapping[str, Tensor]) -> "Memory":
        """The memory of which these are all tensors; others are passed over."""
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            if part in parts:
                parts[part][name] = tensor
        return Memory(windows, **parts)

    def optimizer_for(self, now: Selection, axes: AxisMap, kinds: KindsOf) -> dict[str, Tensor]:
        """The state over the units of other windows. Parameters with a unit that has none, itself or as a
        twin, begin anew and are missing."""
        carried: dict[str, Tensor] = {}
        for key, tensor in self.optimizer.items():
            dims = axes.tensors[key.partition("/")[2]]
            own = moved(tensor, dims if tensor.dim() else (), self.windows, now, kinds)
            if own is not None:
                carried[key] = own
        return carried
