"""What the ways of training several participants at once have in common."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from msfusion.core.axes import Widths
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective

Fill: TypeAlias = Callable[[int, Mapping[str, Tensor]], None]
"""Put the values of a sub-model, by its place among those that train at once, into these tensors."""

Trained: TypeAlias = tuple[dict[str, Tensor], float]
"""Trained parameters of a sub-model, lent until its place is filled anew, and its mean loss."""


class Unbatchable(Exception):
    """Why a model cannot train several participants at once."""


@dataclass(frozen=True)
class Group:
    """Participants that train at once, and how; sequences have an entry for each.

    widths: of their sub-models.
    fill: gets the values to train, and once more when they are trained.
    lr: of the round.
    seeds: as for ``local.train``.
    """

    widths: Sequence[Widths]
    fill: Fill
    data: Sequence[Dataset[Any]]
    objective: Objective
    config: Train
    lr: float
    seeds: Sequence[int]


class Way(Protocol):
    """Trains several participants at once.

    least: with fewer participants, one by one is faster.
    mixes: whether they may be of several shapes.
    """

    least: int
    mixes: bool

    def train(self, group: Group) -> Generator[Trained]:
        """What becomes of every sub-model on its own data, the scale rule undone; to be closed if it is not
        read to its end.

        Raises Unbatchable, and has trained nothing, where the model cannot.
        """
        ...

    def forget(self) -> None:
        """Free what is kept for the next round."""
        ...
