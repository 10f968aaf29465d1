"""Which parameters have been trained, how often and how evenly: exact, without training anything.

Parameters that always go together (the 3x3 taps of a filter, the 64 columns of a head, everything along an
axis that is whole) are counted once and weighed by their number, and tensors that follow the same axes share
one table.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from msfusion.core.axes import Axis, AxisMap, Concat, Dim, Fixed, Product, Selection
from msfusion.core.merge import add_into, row_blocks
from msfusion.core.windows import Schedule


@dataclass(frozen=True)
class Summary:
    """Coverage of the full model's parameters.

    share: share of the parameters trained at least once.
    least, mean: how often a parameter was trained.
    variation: standard deviation of that number over its mean; 0 is perfectly even.
    """

    share: float
    least: int
    mean: float
    variation: float


@dataclass(frozen=True)
class _Weights:
    """For how many parameters each entry of a table stands: the product of what its indices stand for.

    vectors: one per dimension of the table, float64. factor: of all entries.
    """

    factor: float
    vectors: tuple[Tensor, ...]

    @staticmethod
    def of(condensed: tuple[Dim, ...], multiplicities: list[Tensor]) -> "_Weights":
        pairs = list(zip(condensed, multiplicities, strict=True))
        factor = math.prod(float(vector) for dim, vector in pairs if dim == Fixed(1))
        return _Weights(factor, tuple(vector for dim, vector in pairs if dim != Fixed(1)))

    def total(self) -> float:
        return self.factor * math.prod(float(vector.sum()) for vector in self.vectors)

    def sum(self, table: Tensor, of: Callable[[Tensor], Tensor]) -> float:
        """The weighted sum of a function of the entries, some rows at a time."""
        if not self.vectors:
            return self.factor * float(of(table))
        first, *others = self.vectors
        total = 0.0
        for rows in row_blocks(tuple(table.shape)):
            part = of(table[rows]).double()
            for vector in reversed(others):
                part = part @ vector
            total += float(part @ first[rows])
        return self.factor * total


class Coverage:
    """Counts how often each parameter is trained.

    parameters: names of the parameters (buffers are not trained).
    cut: the axes that selections name; all others are whole.
    """

    def __init__(self, axes: AxisMap, parameters: Iterable[str], cut: Iterable[str]) -> None:
        named = frozenset(cut)
        self._key: dict[str, tuple[Dim, ...]] = {}
        self._counts: dict[tuple[Dim, ...], Tensor] = {}
        self._weights: dict[str, _Weights] = {}
        for name in parameters:
            dims = tuple(_condensed(dim, named) for dim in axes.tensors[name])
            key = self._key[name] = tuple(dim for dim in dims if dim != Fixed(1))
            self._counts.setdefault(key, torch.zeros([dim.size for dim in key], dtype=torch.int32))
            multiplicities = [_multiplicity(full, named) for full in axes.tensors[name]]
            self._weights[name] = _Weights.of(dims, multiplicities)

    def add(self, selection: Selection) -> None:
        """Count one participant's sub-model."""
        for dims, counts in self._counts.items():
            add_into(counts, dims, selection, 1)

    def of(self, parameter: str) -> Summary:
        """Coverage of one parameter tensor."""
        return _summary([(self._counts[self._key[parameter]], self._weights[parameter])])

    def summary(self) -> Summary:
        """Coverage of all parameters."""
        return _summary([(self._counts[self._key[name]], own) for name, own in self._weights.items()])

    def state(self) -> list[Tensor]:
        """The tables, in a fixed order, to be saved and given to ``restore``."""
        return list(self._counts.values())

    def restore(self, state: list[Tensor]) -> None:
        """Go on from saved tables."""
        for counts, saved in zip(self._counts.values(), state, strict=True):
            counts.copy_(saved)


def over_rounds(
    coverage: Coverage, schedule: Schedule, widths: list[dict[str, int]], rounds: int
) -> Iterator[Summary]:
    """Coverage after each round when every participant takes part; ``widths`` has one entry for each."""
    for round in range(rounds):
        for participant, own in enumerate(widths):
            coverage.add(schedule.windows(round, participant, own))
        yield coverage.summary()


def _condensed(dim: Dim, cut: frozenset[str]) -> Dim:
    """The dim with one index for all positions that no cut axis tells apart."""
    match dim:
        case Axis(name=name):
            return dim if name in cut else Fixed(1)
        case Product(factors=factors):
            kept = tuple(f for f in (_condensed(f, cut) for f in factors) if f != Fixed(1))
            return Fixed(1) if not kept else kept[0] if len(kept) == 1 else Product(kept)
        case Concat(parts=parts):
            kept = tuple(_condensed(p, cut) for p in parts)
            return Fixed(1) if all(p == Fixed(1) for p in kept) else Concat(kept)
        case Fixed():
            return Fixed(1)


def _multiplicity(dim: Dim, cut: frozenset[str]) -> Tensor:
    """How many positions each index of the condensed dim stands for."""
    match dim:
        case Axis(name=name, size=size):
            return torch.ones(size, dtype=torch.float64) if name in cut else _single(size)
        case Product(factors=factors):
            out = _single(1)
            for factor in factors:
                out = torch.outer(out, _multiplicity(factor, cut)).flatten()
            return out
        case Concat(parts=parts):
            if _condensed(dim, cut) == Fixed(1):
                return _single(dim.size)
            return torch.cat([_multiplicity(p, cut) for p in parts])
        case Fixed(size=size):
            return _single(size)


def _single(size: int) -> Tensor:
    return torch.tensor([size], dtype=torch.float64)


def _summary(tables: list[tuple[Tensor, _Weights]]) -> Summary:
    total = sum(weights.total() for _, weights in tables)
    trained = sum(weights.sum(counts, lambda n: n > 0) for counts, weights in tables)
    mean = sum(weights.sum(counts, lambda n: n) for counts, weights in tables) / total
    square = sum(weights.sum(counts, lambda n: n.double().square()) for counts, weights in tables) / total
    return Summary(
        share=trained / total,
        least=min(int(counts.min()) for counts, _ in tables),
        mean=mean,
        variation=math.sqrt(max(0.0, square - mean**2)) / mean if mean else 0.0,
    )
