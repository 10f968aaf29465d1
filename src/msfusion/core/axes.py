"""Where the units of an axis lie in a tensor.

A *dim* says which axis one dimension of a tensor follows, and how::

    Fixed(10)                                      10 indices that are never cut (classes, kernel taps)
    Axis("fc1.out", 64)                            one index per unit
    Product((Axis("heads", 4), Fixed(16)))         row-major: index = unit * 16 + inner
    Concat((Axis("a", 8), Axis("b", 8)))           segments, one behind the other

Their text form (``str`` and ``parse`` are inverse) is ``10``, ``fc1.out:64``, ``heads:4*16``,
``a:8 + b:8``.

*Units* are the selected units of an axis: ascending, disjoint half-open runs. ``positions`` is the only
function that turns units into places in a tensor; extract, merge, coverage and cost all go through it.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, pairwise

Run = tuple[int, int]
"""Half-open range ``(start, stop)``."""

Units = tuple[Run, ...]
"""Ascending, disjoint, non-adjacent runs."""

Selection = Mapping[str, Units]
"""Axis name -> the units that are kept; an axis that is not named is whole."""

Widths = Mapping[str, int]
"""Axis name -> number of units kept; an axis that is not named is whole."""


@dataclass(frozen=True)
class Fixed:
    """``size`` indices that no axis governs."""

    size: int

    def __str__(self) -> str:
        return str(self.size)


@dataclass(frozen=True)
class Axis:
    """One index per unit of the axis ``name``, which has ``size`` units."""

    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name}:{self.size}"


@dataclass(frozen=True)
class Product:
    """Row-major product of ``factors``, outer first."""

    factors: tuple["Dim", ...]

    @property
    def size(self) -> int:
        return math.prod(f.size for f in self.factors)

    def __str__(self) -> str:
        return "*".join(f"({f})" if isinstance(f, Product | Concat) else str(f) for f in self.factors)


@dataclass(frozen=True)
class Concat:
    """``parts`` one behind the other."""

    parts: tuple["Dim", ...]

    @property
    def size(self) -> int:
        return sum(p.size for p in self.parts)

    def __str__(self) -> str:
        return " + ".join(f"({p})" if isinstance(p, Concat) else str(p) for p in self.parts)


Dim = Fixed | Axis | Product | Concat


def runs_of(units: Iterable[int]) -> Units:
    """Runs that hold exactly the given unit numbers."""
    ordered = sorted(set(units))
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1), len(ordered)]
    return tuple((ordered[i], ordered[j - 1] + 1) for i, j in pairwise(breaks) if j > i)


def count(units: Units) -> int:
    """Number of units in the runs."""
    return sum(stop - start for start, stop in units)


def positions(dim: Dim, selection: Selection) -> Units:
    """Indices of a tensor's dimension that the selection keeps, as ascending runs."""
    return _positions(dim, tuple((name, selection[name]) for name in axes_of(dim) if name in selection))


@lru_cache(maxsize=4096)
def _positions(dim: Dim, selected: tuple[tuple[str, Units], ...]) -> Units:
    if not selected:
        return ((0, dim.size),)
    match dim:
        case Axis(name=name):
            return dict(selected)[name]
        case Product(factors=factors):
            runs: Units = ((0, 1),)
            for factor in factors:
                runs = _times(runs, positions(factor, dict(selected)), factor.size)
            return runs
        case Concat(parts=parts):
            offsets = [sum(p.size for p in parts[:i]) for i in range(len(parts))]
            return joined(
                (offset + start, offset + stop)
                for offset, part in zip(offsets, parts, strict=True)
                for start, stop in positions(part, dict(selected))
            )
        case Fixed():
            return ((0, dim.size),)


def _times(outer: Units, inner: Units, size: int) -> Units:
    """Row-major product of two sets of positions; ``size`` is the full extent of the inner one."""
    if inner == ((0, size),):
        return tuple((start * size, stop * size) for start, stop in outer)
    return joined(
        (i * size + start, i * size + stop)
        for low, high in outer
        for i in range(low, high)
        for start, stop in inner
    )


def joined(runs: Iterable[Run]) -> Units:
    """The same ascending runs without empty ones, and with adjacent ones made one."""
    out: list[Run] = []
    for start, stop in runs:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], stop)
        elif stop > start:
            out.append((start, stop))
    return tuple(out)


@lru_cache(maxsize=65536)
def axes_of(dim: Dim) -> tuple[str, ...]:
    """Names of the axes in a dim, in order of appearance, each once."""
    match dim:
        case Axis(name=name):
            return (name,)
        case Product(factors=inner) | Concat(parts=inner):
            return tuple(dict.fromkeys(name for part in inner for name in axes_of(part)))
        case Fixed():
            return ()


def _combined(dim: Dim) -> Iterator[tuple[str, str]]:
    """Pairs of different axes, each pair sorted, that factors of a product bring together."""
    match dim:
        case Product(factors=inner):
            for first, second in combinations(map(axes_of, inner), 2):
                yield from ((min(a, b), max(a, b)) for a in first for b in second if a != b)
            for factor in inner:
                yield from _combined(factor)
        case Concat(parts=inner):
            for part in inner:
                yield from _combined(part)
        case _:
            return


def counted(dim: Dim) -> tuple[str, ...] | None:
    """Names of the axes to whose widths the size of the dim is proportional, each as often as it counts, in
    alphabetical order; None where parts that lie side by side are proportional to different ones."""
    match dim:
        case Axis(name=name):
            return (name,)
        case Product(factors=inner) | Concat(parts=inner):
            each = [names for names in map(counted, inner) if names is not None]
            if len(each) < len(inner):
                return None
            if isinstance(dim, Product):
                return tuple(sorted(name for names in each for name in names))
            return each[0] if len(set(each)) == 1 else None
        case Fixed():
            return ()


def narrowed(dim: Dim, widths: Widths) -> int:
    """Size of the dim when each axis keeps ``widths[axis]`` units."""
    match dim:
        case Axis(name=name, size=size):
            return widths.get(name, size)
        case Product(factors=factors):
            return math.prod(narrowed(f, widths) for f in factors)
        case Concat(parts=parts):
            return sum(narrowed(p, widths) for p in parts)
        case Fixed(size=size):
            return size


def parse(text: str) -> Dim:
    """Read a dim from its text form, e.g. ``3*heads:4*16`` or ``(rep:4 + 2)*64``."""
    tokens = re.findall(r"[()*+]|[^\s()*+]+", text)
    dim = _parse_concat(tokens)
    if tokens:
        raise ValueError(f"expected a dim such as '3*heads:4*16 + 8', got {text!r}")
    return dim


def _parse_concat(tokens: list[str]) -> Dim:
    parts = [_parse_product(tokens)]
    while tokens and tokens[0] == "+":
        tokens.pop(0)
        parts.append(_parse_product(tokens))
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def _parse_product(tokens: list[str]) -> Dim:
    factors = [_parse_atom(tokens)]
    while tokens and tokens[0] == "*":
        tokens.pop(0)
        factors.append(_parse_atom(tokens))
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def _parse_atom(tokens: list[str]) -> Dim:
    if not tokens:
        raise ValueError("expected a size, an axis as name:size, or '(', got the end of the text")
    token = tokens.pop(0)
    if token == "(":
        dim = _parse_concat(tokens)
        if not tokens or tokens.pop(0) != ")":
            raise ValueError("expected ')' to close '('")
        return dim
    name, colon, size = token.rpartition(":")
    if not size.isdigit() or (colon and not name):
        raise ValueError(f"expected a size or an axis as name:size, got {token!r}")
    return Axis(name, int(size)) if colon else Fixed(int(size))


@dataclass(frozen=True)
class AxisInfo:
    """What is known of one axis.

    size: number of units.
    residual: the axis is a stream that blocks read and write; cut last.
    whole: why the axis is not cut unless it is named, or None where it may be cut.
    """

    size: int
    residual: bool = False
    whole: str | None = None


@dataclass(frozen=True)
class AxisMap:
    """Which axes each tensor of a model follows.

    tensors: parameter and buffer name (as in the state dict, tied ones once) -> a dim per dimension.
    axes: axis name -> what is known of it.
    summed: parameter or buffer -> its dimensions over which its operation sums (1 for a linear layer's
        inputs), and what of each: all of it or a factor; of those that have an axis; the scale rule.
    normalised: parameters whose operation's output goes straight into a norm that takes its size away.
    ties: other names of tied tensors -> the name in ``tensors``.
    pinned: "tensor:dimension" -> why that dimension is never cut.
    unknown: operation without a rule -> how often it occurred; all that it touches is pinned.
    """

    tensors: Mapping[str, tuple[Dim, ...]]
    axes: Mapping[str, AxisInfo]
    summed: Mapping[str, Mapping[int, Dim]] = field(default_factory=dict)
    normalised: frozenset[str] = frozenset()
    ties: Mapping[str, str] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)

    @property
    def cuttable(self) -> tuple[str, ...]:
        """Axes that may be cut, in the order of the map."""
        return tuple(name for name, info in self.axes.items() if info.whole is None)

    def shape(self, tensor: str, widths: Widths) -> tuple[int, ...]:
        """Shape of a tensor in a sub-model of the given widths."""
        return tuple(narrowed(dim, widths) for dim in self.tensors[tensor])

    def summed_axes(self, tensor: str) -> frozenset[str]:
        """Axes over which the operation of a parameter sums."""
        return frozenset(axis for dim in self.summed.get(tensor, {}).values() for axis in axes_of(dim))

    def meetings(self) -> Iterator[tuple[str, str]]:
        """Pairs of different axes that cut the same entries: in two dimensions of a tensor, or as two factors
        of one dimension."""
        return iter(sorted({pair for dims in self.tensors.values() for pair in _combined(Product(dims))}))

    def meet_themselves(self) -> frozenset[str]:
        """Axes that two dimensions of a tensor follow, as those of a recurrent layer's hidden units."""
        pairs = (pair for dims in self.tensors.values() for pair in combinations(map(axes_of, dims), 2))
        return frozenset(axis for first, second in pairs for axis in {*first} & {*second})

    def to_json(self) -> str:
        """Canonical text: equal maps that list their tensors and axes in the same order give equal text."""
        return json.dumps(
            {
                "tensors": {name: [str(d) for d in dims] for name, dims in self.tensors.items()},
                "axes": {name: [i.size, i.residual, i.whole] for name, i in self.axes.items()},
                "summed": {n: {i: str(d) for i, d in own.items()} for n, own in self.summed.items() if own},
                "normalised": sorted(self.normalised),
                "ties": dict(self.ties),
                "pinned": dict(self.pinned),
                "unknown": dict(self.unknown),
            }
        )
