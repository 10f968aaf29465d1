"""How values travel: as they are, or single precision rounded to bfloat16 on its way.

In ``bfloat16`` a participant trains from values rounded to 8 significant bits, and hands over by how much it
moved them, rounded likewise; homes add that to their own values in single precision. So what homes keep is
never rounded, and a rounding error is at most 2^-9 of a value, where somebody trains from it, and 2^-9 of a
change, where it is merged. Shards travel between their holders as they are, or replicas would differ.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["float32", "bfloat16"]


class Wire:
    """How the values of one run travel; the same for every peer, wherever a shard lies."""

    def __init__(self, kind: Kind) -> None:
        self.narrow = kind == "bfloat16"

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In which type values travel that are kept in ``dtype``."""
        return torch.bfloat16 if self.narrow and dtype == torch.float32 else dtype

    def values(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What is sent of values that somebody trains from: rounded to nearest, ties to even."""
        return [t.to(self.dtype(t.dtype)) for t in tensors]

    def room(self, places: Sequence[Tensor]) -> list[Tensor]:
        """Where values arrive that belong into ``places``: there, or in the type in which they travel."""
        kinds = [self.dtype(place.dtype) for place in places]
        return [
            place if kind == place.dtype else torch.empty_like(place, dtype=kind)
            for place, kind in zip(places, kinds, strict=True)
        ]

    def handed(self, trained: Tensor, pulled: Tensor) -> Tensor:
        """What is sent of values after training from ``pulled``: the change where it is rounded."""
        if self.dtype(trained.dtype) == trained.dtype:
            return trained
        return (trained - pulled).to(torch.bfloat16)

    def merged(self, handed: Tensor, kept: Tensor) -> Tensor:
        """The values that count in the merge into ``kept``, those of a home at the same places."""
        if self.dtype(kept.dtype) == kept.dtype:
            return handed
        return kept + handed
