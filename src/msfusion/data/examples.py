"""Datasets that serve whole batches at once from shared storage, and ``fetch``, which serves any dataset."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from msfusion.data.augment import crop_and_flip
from msfusion.errors import UserError

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""


class Examples(Dataset[Batch], ABC):
    """A map-style dataset that can also serve a batch without visiting its examples one by one."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Inputs and targets of the examples ``indices`` (int64); ``generator`` drives augmentation."""

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        x, y = self.batch(torch.tensor([index]))
        return x[0], y[0]


@dataclass(frozen=True, eq=False)
class LabelledImages(Examples):
    """Images with class labels.

    Participants share ``images`` and ``labels`` and differ in ``indices``. Served as float32
    ``(B, channels, height, width)``, normalised per channel, with labels int64 ``(B,)``."""

    images: Tensor  # uint8 (all, channels, height, width)
    labels: Tensor  # int64 (all,)
    indices: Tensor  # int64 (examples,): the rows that belong to this dataset
    mean: Tensor  # float32 (channels, 1, 1), in units of the stored values
    std: Tensor  # float32 (channels, 1, 1)
    augment: bool = False  # in batches that come with a generator

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        rows = self.indices[indices.to(self.indices.device)]
        x = self.images[rows].float().sub_(self.mean).div_(self.std)
        if self.augment and generator is not None:
            x = crop_and_flip(x, generator)
        return x, self.labels[rows]


@dataclass(frozen=True, eq=False)
class TokenBlocks(Examples):
    """Blocks of consecutive tokens; the target of each token is the one that follows it.

    Participants share ``tokens`` and differ in ``start`` and ``stop``. Served as int64 ``(B, block)`` twice,
    the second shifted by one token."""

    tokens: Tensor  # integers (all,)
    start: int  # the tokens start .. stop - 1 belong to this dataset
    stop: int
    block: int  # tokens per example
    stride: int = 1  # between the starts of neighbouring examples; ``block`` makes them disjoint

    def __len__(self) -> int:
        return max(0, (self.stop - self.start - self.block - 1) // self.stride + 1)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        device = self.tokens.device
        first = self.start + indices.to(device) * self.stride
        both = self.tokens[first[:, None] + torch.arange(self.block + 1, device=device)].long()
        return both[:, :-1], both[:, 1:]


def fetch(dataset: Dataset[Any], indices: Tensor, generator: torch.Generator | None) -> Batch:
    """Inputs and targets of the examples ``indices`` of any map-style dataset.

    ``Examples`` serve them themselves, with augmentation drawn from ``generator``; from others the items,
    which must be pairs (``UserError``), are collated as a ``DataLoader`` does."""
    if isinstance(dataset, Examples):
        return dataset.batch(indices, generator)
    numbers = indices.tolist()
    if hasattr(dataset, "__getitems__"):
        items = dataset.__getitems__(numbers)
    else:
        items = [dataset[i] for i in numbers]
    if not isinstance(items[0], tuple | list) or len(items[0]) != 2:
        raise UserError(
            f"expected the items of {type(dataset).__name__} to be pairs (input, target), got "
            f"{type(items[0]).__name__}: return pairs from its __getitem__"
        )
    try:
        x, y = default_collate(items)
    except TypeError:
        raise _no_tensors(dataset, items, "make tensors of them in its __getitem__") from None
    except RuntimeError as error:
        raise UserError(
            f"expected the items of {type(dataset).__name__} to be pairs of tensors of one shape each, got "
            f"others ({str(error).splitlines()[0]}): pad or cut them to one shape"
        ) from None
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        todo = "pack the parts of an input into one tensor, and take it apart in the model"
        raise _no_tensors(dataset, items, todo)
    return x, y


def _no_tensors(dataset: Dataset[Any], items: Sequence[Any], todo: str) -> UserError:
    parts = " and ".join(type(part).__name__ for part in items[0])
    return UserError(
        f"expected the items of {type(dataset).__name__} to be pairs of one tensor or number each, got "
        f"{parts}: {todo}"
    )
