"""Memory that a process and those that it forks share."""

import mmap
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

_ALIGNED = 64  # bytes: a cache line, and as much as any vector instruction asks for


class Shared:
    """Room for tensors, seen alike by this process and by those that it forks afterwards.

    It is an anonymous mapping and not a file in /dev/shm, which is 64 MB small in many containers.
    """

    def __init__(self, size: int) -> None:
        self._bytes = torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)

    def tensors(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of these shapes and types in the room, one behind the other; always at the same places."""
        out, at = {}, 0
        for name, tensor in like.items():
            size = tensor.nbytes
            out[name] = self._bytes[at : at + size].view(tensor.dtype).view(tensor.shape)
            at += _padded(size)
        return out


def size_of(like: Mapping[str, Tensor]) -> int:
    """Bytes of room that tensors of these shapes and types take."""
    return sum(_padded(prod(tensor.shape) * tensor.element_size()) for tensor in like.values())


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
