"""Bytes that lie in several tensors, one behind the other, read and written where they are."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Most bytes in one message: a slow link would time out on more."""


class Strip:
    """The bytes of contiguous tensors in main memory, which stay where they are."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._views = [view for t in tensors if len(view := _bytes_of(t))]
        self._starts = [0, *accumulate(len(view) for view in self._views)]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def chunks(self) -> int:
        """In how many messages it travels."""
        return -(-len(self) // CHUNK)

    def length(self, chunk: int) -> int:
        """Bytes of one chunk."""
        return max(0, min(CHUNK, len(self) - chunk * CHUNK))

    def read(self, chunk: int, into: bytearray) -> None:
        """Copy one chunk into memory of just its length."""
        at, target = 0, memoryview(into)
        for place in self._places(chunk):
            target[at : at + len(place)] = place
            at += len(place)

    def write(self, chunk: int, data: bytes) -> bool:
        """Put one chunk in its place; False, and nothing is written, where it is not of its length."""
        if len(data) != self.length(chunk):
            return False
        at, source = 0, memoryview(data)
        for place in self._places(chunk):
            place[:] = source[at : at + len(place)]
            at += len(place)
        return True

    def _places(self, chunk: int) -> Iterator[memoryview]:
        start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, len(self))
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            view, first = self._views[number], self._starts[number]
            place = view[start - first : stop - first]
            yield place
            start += len(place)
            number += 1


def _bytes_of(tensor: Tensor) -> memoryview:
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"expected a contiguous tensor in main memory, got one on {tensor.device}")
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
