"""Size of the server step: by how much of the merged change the full model moves in a round."""

import math
from typing import Literal

ServerStep = Literal["constant", "linear", "cosine", "exponential"]
"""How the step goes from 1 in the first round to (near) a twentieth in the last; "constant" stays at 1."""

_LAST = 0.05


def server_step(kind: ServerStep, round: int, rounds: int) -> float:
    """Step of ``round`` out of ``rounds``."""
    done = round / max(1, rounds - 1)
    match kind:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - _LAST) * done
        case "cosine":
            return _LAST + (1 - _LAST) * (1 + math.cos(math.pi * done)) / 2
        case "exponential":
            return float(_LAST**done)
