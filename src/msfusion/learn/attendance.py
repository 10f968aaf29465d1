"""Who takes part in a round, and what becomes of what they hand over, where a network is imitated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from msfusion.core.seeds import generator

T = TypeVar("T")

Fate = Literal["on time", "late", "lost"]
"""A contribution is merged in its round, one round later, or never."""


@dataclass(frozen=True)
class Attendance:
    """Pure functions of (seed, round, participant).

    sample: share of the participants that take part in a round; at least one does.
    loss_rate, late_rate: probabilities; together at most 1.
    """

    seed: int
    sample: float = 1.0
    loss_rate: float = 0.0
    late_rate: float = 0.0

    def present(self, round: int, participants: Sequence[T]) -> list[T]:
        """Those who take part, in order."""
        number = max(1, int(self.sample * len(participants) + 0.5))
        if number >= len(participants):
            return list(participants)
        chosen = generator(self.seed, "sample", round).sample(range(len(participants)), number)
        return [participants[i] for i in sorted(chosen)]

    def fate(self, round: int, participant: int) -> Fate:
        """What becomes of a contribution."""
        draw = generator(self.seed, "network", round, participant).random()
        if draw < self.loss_rate:
            return "lost"
        return "late" if draw < self.loss_rate + self.late_rate else "on time"
