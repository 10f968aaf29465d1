"""Which parameters have been trained, how often and how evenly: exact, without training anything.

Parameters that always go together are counted once and weighed by their number: the 3x3 taps of a filter, the
64 columns of a head, everything along an axis that is whole, and units of an axis that so far were trained
together or not at all. Tensors that follow the same axes share one table. So the tables stay small beside the
model unless windows begin and end nearly everywhere, as units taken at random do.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from msfusion.core.axes import Axis, AxisMap, Concat, Dim, Fixed, Product, Selection, Units, axes_of
from msfusion.core.cut import places_from
from msfusion.core.merge import add_into, row_blocks
from msfusion.core.windows import Schedule
from msfusion.errors import UserError


@dataclass(frozen=True)
class Summary:
    """Coverage of the full model's parameters.

    share: share of the parameters that were in a participant's sub-model at least once, whether or not its
        examples reached them.
    least, mean: how often a parameter was trained.
    variation: standard deviation of that number over its mean; 0 is perfectly even.
    """

    share: float
    least: int
    mean: float
    variation: float


@dataclass
class _Classes:
    """Units of an axis that were always taken together: neighbours, from each of ``starts`` to the next."""

    size: int
    starts: list[int]

    def split(self, units: Units) -> "_Classes":
        """Classes of which the units hold all or nothing."""
        return _Classes(self.size, sorted({*self.starts, *chain.from_iterable(units)} - {self.size}))

    def holding(self, units: Units) -> Units:
        """The classes that the units hold, as runs of their numbers."""
        places = [*self.starts, self.size]
        return tuple((bisect_left(places, start), bisect_left(places, stop)) for start, stop in units)

    def numbers(self, finer: "_Classes") -> Tensor:
        """The number of the class in which each of the finer ones lies."""
        return torch.tensor([bisect_right(self.starts, start) - 1 for start in finer.starts])

    def sizes(self) -> Tensor:
        """Units per class, float64."""
        return torch.tensor([*self.starts, self.size], dtype=torch.float64).diff()


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

    parameters: names of those that are trained (buffers and frozen ones are not).
    cut: the axes that selections name; all others are whole.
    """

    def __init__(self, axes: AxisMap, parameters: Iterable[str], cut: Iterable[str]) -> None:
        named = sorted(set(cut) & axes.axes.keys())
        self._classes = {name: _Classes(axes.axes[name].size, [0]) for name in named}
        self._dims = {name: axes.tensors[name] for name in parameters}
        self._condensed = {
            name: tuple(_condensed(dim, self._classes.keys()) for dim in dims)
            for name, dims in self._dims.items()
        }
        self._key = {n: tuple(d for d in dims if d != Fixed(1)) for n, dims in self._condensed.items()}
        self._counts = {
            key: torch.zeros([_by_class(dim, self._classes).size for dim in key], dtype=torch.int32)
            for key in self._key.values()
        }
        self._weights: dict[str, _Weights] = {}

    def add(self, selection: Selection) -> None:
        """Count one participant's sub-model."""
        own = {name: units for name, units in selection.items() if name in self._classes}
        self._tell_apart({name: self._classes[name].split(units) for name, units in own.items()})
        held = {name: self._classes[name].holding(units) for name, units in own.items()}
        for key, counts in self._counts.items():
            add_into(counts, tuple(_by_class(dim, self._classes) for dim in key), held, 1)

    def of(self, parameter: str) -> Summary:
        """Coverage of one parameter tensor."""
        return _summary([(self._counts[self._key[parameter]], self._weight(parameter))])

    def summary(self) -> Summary:
        """Coverage of all parameters."""
        return _summary(self._tables())

    def share(self) -> float:
        """Share of the parameters that were in a participant's sub-model at least once."""
        return _share(self._tables())

    def _tables(self) -> list[tuple[Tensor, _Weights]]:
        return [(self._counts[key], self._weight(name)) for name, key in self._key.items()]

    def state(self) -> list[Tensor]:
        """The classes and the tables, in a fixed order, to be saved and given to ``restore``."""
        return [*(torch.tensor(c.starts) for c in self._classes.values()), *self._counts.values()]

    def restore(self, state: list[Tensor]) -> None:
        """Go on from a saved state; UserError for one of another map or of an earlier version."""
        if len(state) != (want := len(self._classes) + len(self._counts)):
            raise UserError(
                f"expected a saved coverage of {want} tables, got {len(state)}: it is of another model or of"
                " an earlier version of msfusion; start the run anew in another directory"
            )
        for classes, starts in zip(self._classes.values(), state, strict=False):
            classes.starts = starts.tolist()
        self._weights = {}
        saved = state[len(self._classes) :]
        self._counts = {key: counts.clone() for key, counts in zip(self._counts, saved, strict=True)}

    def _tell_apart(self, finer: Mapping[str, "_Classes"]) -> None:
        """Go on with finer classes of some axes."""
        finer = {name: classes for name, classes in finer.items() if classes != self._classes[name]}
        if not finer:
            return
        old = {name: self._classes[name].numbers(classes) for name, classes in finer.items()}

        def class_from(axis: Axis) -> Tensor:
            return old.get(axis.name, torch.arange(axis.size))

        for key, counts in self._counts.items():
            for d, dim in enumerate(key):
                if not old.keys().isdisjoint(axes_of(dim)):
                    counts = counts.index_select(d, places_from(_by_class(dim, self._classes), class_from))
            self._counts[key] = counts
        self._classes |= finer
        self._weights = {}

    def _weight(self, parameter: str) -> _Weights:
        if parameter not in self._weights:
            each = [_multiplicity(dim, self._classes) for dim in self._dims[parameter]]
            self._weights[parameter] = _Weights.of(self._condensed[parameter], each)
        return self._weights[parameter]


def over_rounds(
    coverage: Coverage, schedule: Schedule, widths: list[dict[str, int]], rounds: int
) -> Iterator[Summary]:
    """Coverage after each round when every participant takes part; ``widths`` has one entry for each."""
    for round in range(rounds):
        for participant, own in enumerate(widths):
            coverage.add(schedule.windows(round, participant, own))
        yield coverage.summary()


def _by_class(dim: Dim, classes: Mapping[str, _Classes]) -> Dim:
    """The dim with one index for all units of a class."""
    match dim:
        case Axis(name=name):
            return Axis(name, len(classes[name].starts))
        case Product(factors=factors):
            return Product(tuple(_by_class(factor, classes) for factor in factors))
        case Concat(parts=parts):
            return Concat(tuple(_by_class(part, classes) for part in parts))
        case Fixed():
            return dim


def _condensed(dim: Dim, cut: Collection[str]) -> Dim:
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


def _multiplicity(dim: Dim, cut: Mapping[str, _Classes]) -> Tensor:
    """How many positions each index of the condensed dim stands for."""
    match dim:
        case Axis(name=name, size=size):
            return cut[name].sizes() if name in cut else _single(size)
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


def _total(tables: list[tuple[Tensor, _Weights]]) -> float:
    return sum(weights.total() for _, weights in tables)


def _share(tables: list[tuple[Tensor, _Weights]]) -> float:
    return sum(weights.sum(counts, lambda n: n > 0) for counts, weights in tables) / _total(tables)


def _summary(tables: list[tuple[Tensor, _Weights]]) -> Summary:
    total = _total(tables)
    mean = sum(weights.sum(counts, lambda n: n) for counts, weights in tables) / total
    square = sum(weights.sum(counts, lambda n: n.double().square()) for counts, weights in tables) / total
    return Summary(
        share=_share(tables),
        least=min(int(counts.min()) for counts, _ in tables),
        mean=mean,
        variation=math.sqrt(max(0.0, square - mean**2)) / mean if mean else 0.0,
    )
