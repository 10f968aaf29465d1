"""The values of a sub-model, from one's own disk where they are there, else from the others."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from msfusion.core.axes import AxisMap, Selection
from msfusion.learn.submodels import widths_of
from msfusion.peers.layout import rows_of
from msfusion.peers.network import Network
from msfusion.peers.pieces import Wanted
from msfusion.peers.states import Version
from msfusion.peers.stock import Stock
from msfusion.peers.strip import Strip

Sources = Callable[[Version, int], list[int]]
"""(version, shard) -> others who hold it."""


class Pull:
    """Pulls sub-models for one participant, each into the memory of the one before."""

    def __init__(self, number: int, axes: AxisMap, stock: Stock, sources: Sources) -> None:
        self._number, self._axes, self._sources = number, axes, sources
        self._layout, self._disk, self._home, self._wire = stock.layout, stock.disk, stock.home, stock.wire
        self._received: dict[str, Tensor] = {}

    def values(
        self, version: Version, windows: Selection, network: Network, valid: Callable[[], bool]
    ) -> dict[str, Tensor]:
        """The parameters of a sub-model of a version; raises Disturbed when ``valid`` says no."""
        values = self.room(windows)
        wanted = []
        arriving: list[tuple[Tensor, Tensor]] = []
        shards = range(len(self._layout))
        for shard in sorted(shards, key=lambda shard: (shard - self._number) % len(shards)):
            places = [
                rows_of(values[part.piece.tensor], part.rows) for part in self._layout.parts(shard, windows)
            ]
            if self._disk.has(version, shard):
                for place, value in zip(places, self._home.pulled(version, shard, windows), strict=True):
                    place.copy_(value)
            else:
                path = f"values/{version.text}/{shard}/{self._number}"
                come = self._wire.room(places)
                wanted.append(Wanted(partial(self._sources, version, shard), path, Strip(come)))
                arriving += zip(places, come, strict=True)
        network.fetch(wanted, valid)
        for place, part in arriving:
            if place is not part:
                place.copy_(part)
        return values

    def room(self, windows: Selection) -> dict[str, Tensor]:
        """Where the pulled values go: the same memory in every round, as long as the widths are the same."""
        widths = widths_of(windows)
        for name, spec in self._layout.tensors.items():
            shape = self._axes.shape(name, widths)
            if name not in self._received or tuple(self._received[name].shape) != shape:
                self._received[name] = torch.empty(shape, dtype=spec.dtype)
        return dict(self._received)
