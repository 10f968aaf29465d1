"""Where a model's own tensors lie in memory: a run changes each of them in place, on its own."""

import torch
from torch import Tensor, nn

from msfusion.capture.graph import named_tensors
from msfusion.errors import UserError


def own_memory_(model: nn.Module) -> None:
    """Give tensors that are expanded, and those over memory of others, memory of their own; the objects and
    their values stay.

    Raises UserError where one of the two is trained: sub-models would train them apart.
    """
    for tensor in named_tensors(model).values():
        if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
            _move_(tensor)
    known: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in named_tensors(model).items():
        beside = known.setdefault(tensor.untyped_storage()._cdata, [])
        for other, one in beside:
            if not _overlap(one, tensor):
                continue
            if one.requires_grad or tensor.requires_grad:
                raise UserError(
                    f"expected parameters with memory of their own, got {name} over that of {other}: make "
                    "them one and the same tensor where they are tied, or copy one with clone()"
                )
            _move_(tensor)
            break
        else:
            beside.append((name, tensor))


def _move_(tensor: Tensor) -> None:
    tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether any byte of two tensors of one storage is of both."""
    (start, end), (other_start, other_end) = _extent(one), _extent(other)
    if end <= other_start or other_end <= start:
        return False
    touched = torch.zeros(one.untyped_storage().nbytes(), dtype=torch.bool)
    _bytes(touched, one).fill_(True)
    return bool(_bytes(touched, other).any())


def _extent(tensor: Tensor) -> tuple[int, int]:
    last = sum(int(size - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()


def _bytes(of_storage: Tensor, tensor: Tensor) -> Tensor:
    """One entry per byte of the tensor, seen in those of its storage."""
    size = tensor.element_size()
    steps = [step * size for step in tensor.stride()]
    return of_storage.as_strided((*tensor.shape, size), (*steps, 1), tensor.storage_offset() * size)
