"""Twins: units that start as copies of one another, and go on sharing what they learn.

Trained from independent initial values, the units of a sub-model learn to work beside one another, and in
the next round each works beside others. Here unit ``u`` of a cut axis starts as a copy of unit ``u mod
width``; units that are alike are twins. A cyclic window of that width then holds one of each kind, wherever
it starts, so all sub-models are the same function at first, up to the order of their units, and so is the
full model under the scale rule (core/scale.py): what participants learn in different windows, they learn
about the same function. From there twins drift apart with the data and the neighbours that they see. How
fast, is the tie: the share of a unit's merged change that is the mean over its twins instead of its own. With
a tie of 1 they stay alike, and the full model is a small one in many copies. Twins in a residual stream
always stay alike: all blocks read and write them, and would have to know one twin from the other. (Ours; the
start is related to Net2Net's widening, arXiv 1511.05641.) Where an axis does not divide by the width, the
window that crosses its end holds some kinds twice and misses others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from msfusion.core.apart import together
from msfusion.core.axes import AxisMap, Dim, Widths
from msfusion.core.cut import places_from
from msfusion.core.scale import fan_in


@dataclass(frozen=True)
class Kinds:
    """The kinds of indices along a dimension; all int64.

    of: the kind of every index.
    ranks: (kinds, index of each) of the first of every kind, then of the second of those that have one, ...
    """

    of: Tensor
    ranks: tuple[tuple[Tensor, Tensor], ...]

    @property
    def first(self) -> Tensor:
        """The first index of every kind."""
        return self.ranks[0][1]

    @staticmethod
    def numbered(of: Tensor) -> "Kinds":
        """Those of indices whose kinds are told apart by these numbers."""
        _, of, number = torch.unique(of, return_inverse=True, return_counts=True)
        order = torch.argsort(of, stable=True)
        starts = number.cumsum(0) - number
        ranks = []
        for rank in range(int(number.max()) if len(number) else 0):
            which = (number > rank).nonzero().flatten()
            ranks.append((which, order[starts[which] + rank]))
        return Kinds(of, tuple(ranks))

    def to(self, device: torch.device) -> "Kinds":
        ranks = tuple((kinds.to(device), indices.to(device)) for kinds, indices in self.ranks)
        return Kinds(self.of.to(device), ranks)

    def sums(self, tensor: Tensor, dimension: int) -> Tensor:
        """The sums over the indices of each kind, added in their order, on any device."""
        out = tensor.index_select(dimension, self.first)
        for kinds, indices in self.ranks[1:]:  # none twice in one call: a GPU adds them in any order
            out.index_add_(dimension, kinds, tensor.index_select(dimension, indices))
        return out


class Twins:
    """Who is whose twin in a model, and how they are tied.

    widths: axis -> units of the narrowest window, the number of kinds; axes that are not named have no twins.
    tie: in [0, 1].
    apart: windows share no unit (core/apart.py): each has a residual stream of its own, and what lies in no
        sub-model has no twins.
    """

    def __init__(self, axes: AxisMap, widths: Widths, tie: float, *, apart: bool = False) -> None:
        self.tie, self._apart = tie, apart
        self._axes, self._widths = axes, dict(widths)
        streams = () if apart else widths
        self._stream = {axis: widths[axis] for axis in streams if axes.axes[axis].residual}
        self._rows: Mapping[str, tuple[str, Tensor]] = {}
        self._kinds = cache(self._kinds_of)
        self._kinds_of_rows = cache(self._kinds_among)
        self._mask = cache(self._mask_of)

    def among(self, rows: Mapping[str, tuple[str, Tensor]]) -> "Twins":
        """The same for tensors that are some rows of the model's; all twins of a row have to be among them.

        rows: name -> the model's tensor and its rows, int64.
        """
        some = Twins(self._axes, self._widths, self.tie, apart=self._apart)
        some._rows = rows
        return some

    def of_rows(self, name: str) -> Tensor | None:
        """The kind of every row of a tensor, int64; None where no row has a twin."""
        dims = self._axes.tensors[name]
        return self.of(dims[0]) if dims else None

    def of(self, dim: Dim) -> Tensor | None:
        """The kind of every index along a dimension, int64; None where no index has a twin."""
        own = self._kinds(dim, False, torch.device("cpu"))
        return own.of if len(own.ranks) > 1 else None

    @torch.no_grad()
    def start_(self, values: Mapping[str, Tensor], power: float) -> None:
        """Make all twins copies of the first of their kind, in place.

        power: the scale rule's exponent; 0 where the rule is off. Where it is on, tensors to which it applies
        are scaled as well (``spread_``).
        """
        for name, value in values.items():
            copies = value
            for d, kinds in self._cut(name, value.device):
                copies = copies.index_select(d, kinds.first[kinds.of])
            value.copy_(copies)
        if power:
            spread_(values, self._axes, self._widths)

    def mean(self, name: str, total: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over twins, in the shape of the tensor.

        total: weighted sum per parameter. weight: sum of the weights, broadcast to it; 0 where nobody held a
        parameter. Twins of which nobody held any have the mean 0.
        """
        mean = self._mean(self._cut(name, total.device), total, weight)
        return mean if (mask := self._mask(name, mean.device)) is None else mean.mul_(mask)

    def _mask_of(self, name: str, device: torch.device) -> Tensor | None:
        """Which entries of a tensor have twins, where not all do."""
        tensor, rows = self._rows.get(name, (name, None))
        mask = together(self._axes.tensors[tensor], self._widths) if self._apart else None
        if mask is None or rows is None or len(mask) == 1:
            return mask if mask is None else mask.to(device)
        return mask[rows].to(device)

    def own(self, name: str, total: Tensor, weight: Tensor) -> Tensor | None:
        """The same over those twins that differ in their units of a residual stream only: what counts as a
        parameter's own. None where it has no such twins."""
        cut = self._cut(name, total.device, stream=True)
        return self._mean(cut, total, weight) if cut else None

    def _mean(self, cut: Sequence[tuple[int, Kinds]], total: Tensor, weight: Tensor) -> Tensor:
        shape = list(weight.shape)
        for d, _ in cut:
            shape[d] = total.shape[d]
        weight = weight.expand(shape)
        for d, own in cut:
            total, weight = own.sums(total, d), own.sums(weight, d)
        mean = total / weight.clamp_min(torch.finfo(weight.dtype).tiny)
        for d, own in cut:
            mean = mean.index_select(d, own.of)
        return mean

    def _cut(self, name: str, device: torch.device, stream: bool = False) -> list[tuple[int, Kinds]]:
        """The dimensions in which a tensor's indices have twins, with their kinds.

        stream: those that differ in units of a residual stream only.
        """
        tensor, _ = self._rows.get(name, (name, None))
        found = [(d, self._kinds(dim, stream, device)) for d, dim in enumerate(self._axes.tensors[tensor])]
        if found and name in self._rows:
            found[0] = (0, self._kinds_of_rows(name, stream, device))
        return [(d, own) for d, own in found if len(own.ranks) > 1]

    def _kinds_of(self, dim: Dim, stream: bool, device: torch.device) -> Kinds:
        return kinds(dim, self._stream if stream else self._widths).to(device)

    def _kinds_among(self, name: str, stream: bool, device: torch.device) -> Kinds:
        tensor, rows = self._rows[name]
        whole = self._kinds(self._axes.tensors[tensor][0], stream, torch.device("cpu"))
        return Kinds.numbered(whole.of[rows]).to(device)


def spread_(values: Mapping[str, Tensor], axes: AxisMap, widths: Widths) -> None:
    """Scale tensors that sum over cut axes, in place, so that a sub-model begins with values as large as a
    model has that was made so narrow: by the root of the factor of the scale rule. Where they are given that
    factor when they are cut out they become smaller by its root, before a norm larger."""
    whole, own = fan_in(axes, {}), fan_in(axes, widths)
    for name in values.keys() & {name for name in whole if whole[name] != own[name]}:
        root = math.sqrt(whole[name] / own[name])
        values[name].mul_(root if name in axes.normalised else 1 / root)


def kinds(dim: Dim, widths: Widths) -> Kinds:
    """Those of a dimension whose axes have so many kinds of units, or as many as units."""
    return Kinds.numbered(
        places_from(dim, lambda axis: torch.arange(axis.size) % widths.get(axis.name, axis.size))
    )
