"""What a participant keeps along the units of its windows, when these have moved (ours).

A unit that both windows hold keeps its own. With twins (core/twins.py) a unit that is new takes that of its
twin, which does the same work: where windows divide their axes, every window holds one of each kind, and all
that was kept is kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from msfusion.core.axes import Dim, Selection, positions
from msfusion.core.cut import index

KindsOf = Callable[[Dim], Tensor | None]
"""The kind of every index along a dimension, int64; None where no index has a twin."""


def moved(
    tensor: Tensor, dims: tuple[Dim, ...], before: Selection, now: Selection, kinds: KindsOf
) -> Tensor | None:
    """A tensor over the units of the windows ``before``, over those of ``now``; None where a unit has
    nothing to take. The tensor itself where no unit moved."""
    for d, dim in enumerate(dims):
        old, new = positions(dim, before), positions(dim, now)
        if old != new:
            source = sources(index(old, tensor.device), index(new, tensor.device), dim.size, kinds(dim))
            if source is None:
                return None
            tensor = tensor.index_select(d, source)
    return tensor


def sources(old: Tensor, new: Tensor, size: int, kinds: Tensor | None) -> Tensor | None:
    """Where in ``old`` each index of ``new`` finds itself, else the first of its kind; None where one finds
    neither.

    old, new: indices along a dimension of ``size``, int64.
    """
    own = old.new_full((size,), -1)
    own[old] = torch.arange(len(old), device=old.device)
    found = own[new]
    if kinds is not None:
        kinds = kinds.to(old.device)
        first = old.new_full((int(kinds.max()) + 1,), len(old))
        first.scatter_reduce_(0, kinds[old], torch.arange(len(old), device=old.device), "amin")
        twin = first[kinds[new]]
        found = torch.where((found < 0) & (twin < len(old)), twin, found)
    return found if bool((found >= 0).all()) else None
