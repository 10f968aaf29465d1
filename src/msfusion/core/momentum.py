"""Server momentum: a full model that goes on in the direction in which it has been moving.

What moves it in a round is the merged change and, decayed, what moved it the round before (FedAvgM, Hsu et
al., arXiv 1909.06335). It costs participants nothing: neither bytes nor arithmetic. A parameter that nobody
changed in a round keeps its value and its velocity: models that are trained in slices do not coast where
nobody has looked.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from msfusion.core.cut import Rows


class Momentum:
    """The velocities of a full model, as many bytes as its parameters.

    decay: in [0, 1), what is left of a velocity after a round; a steady change is made 1 / (1 - decay) times.
    velocity: parameter name -> where its velocity lies and is changed in place, in single precision or wider;
        others are kept in memory, and start at zero.
    """

    def __init__(self, decay: float, velocity: Mapping[str, Tensor] | None = None) -> None:
        self._decay = decay
        self._velocity = dict(velocity or {})

    def carry_(self, name: str, rows: Rows, changes: Tensor, total: Tensor) -> None:
        """Turn changes of some rows of a parameter into what moves them, in place.

        total: any tensor of the shape, type and device of all changes of the parameter.
        """
        if name not in self._velocity:
            self._velocity[name] = torch.zeros_like(total)
        velocity = self._velocity[name][rows]
        changed = changes.ne(0)
        velocity.copy_(torch.where(changed, velocity * self._decay + changes, velocity))
        changes.copy_(velocity * changed)

    def state(self) -> dict[str, Tensor]:
        """Parameter name -> velocity, of those that have moved."""
        return dict(self._velocity)

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from a saved ``state``."""
        self._velocity = {name: tensor.to(device) for name, tensor in state.items()}
