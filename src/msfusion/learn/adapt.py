"""Settings of adaptive overlap (core/overlap.py)."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from msfusion.core.overlap import Kind, Rule


@dataclass(frozen=True)
class Adapt:
    """How the overlap rate of msfusion moves from ``overlap``, epoch by epoch of its windows."""

    kind: Kind = "constant"  # constant; over the rounds linear, cosine, exponential; or feedback on the shift
    last: Annotated[float, Ge(0), Lt(1)] = 0.0  # rate that a schedule over the rounds ends near
    target: Annotated[float, Gt(0)] = 1.0  # feedback: model shift that leaves the rate as it is
    gain: Annotated[float, Gt(0), Le(0.5)] = 0.1  # feedback: change of the rate at twice or half the target
    most: Annotated[float, Ge(0), Le(0.95)] = 0.75  # feedback: highest rate
    measure: bool = False  # record the model shift whatever the kind; feedback always does

    @property
    def measures(self) -> bool:
        """Whether the merge measures the model shift."""
        return self.measure or self.kind == "feedback"

    def rule(self, first: float, rounds: int) -> Rule:
        """The rule of a run that starts at the rate ``first``."""
        return Rule(self.kind, first, self.last, rounds, self.target, self.gain, self.most)
