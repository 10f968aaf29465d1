"""Digests of data: whether they are those of an earlier start, or the same with every peer."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from msfusion.data.examples import LabelledImages, TokenBlocks


def digest(datasets: Sequence[Dataset[Any]]) -> str | None:
    """Of all examples and of who has which, tensors that datasets share being read once.

    None where a dataset is not of this package: one of the user's own may draw its examples anew each time.
    """
    found: dict[int, str] = {}
    hasher = hashlib.blake2b(digest_size=16)
    for one in datasets:
        if not isinstance(one, LabelledImages | TokenBlocks):
            return None
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            if isinstance(value, Tensor):
                if id(value) not in found:
                    found[id(value)] = f"{tuple(value.shape)} {_of(value)}"
                value = found[id(value)]
            hasher.update(f"{field.name} {value};".encode())
    return hasher.hexdigest()


def contents(datasets: Sequence[Dataset[Any]]) -> str | None:
    """Of which examples there are, whoever has them and in whatever order: the same for all splits of the
    same data. None unless all are tensors in memory, as others may be drawn anew or slow to read."""
    total = 0
    for one in datasets:
        whole, rows = _rows(one)
        if type(whole) is not TensorDataset:
            return None
        if not len(rows):
            continue
        plain = [tensor.detach().cpu().resolve_conj().resolve_neg() for tensor in whole.tensors]
        tensors = [tensor.reshape(len(tensor), -1).contiguous() for tensor in plain]
        arrays = [tensor.view(torch.uint8).numpy() for tensor in tensors]
        for row in rows:
            example = b"".join(array[row].tobytes() for array in arrays)
            total += int.from_bytes(hashlib.blake2b(example, digest_size=8).digest())
    return f"{total % 2**64:016x}"


def _rows(dataset: Dataset[Any]) -> tuple[Dataset[Any], Sequence[int]]:
    """The dataset that others are taken from, and the rows of it that are."""
    if type(dataset) is not Subset:
        return dataset, range(len(dataset))  # type: ignore[arg-type]
    whole, rows = _rows(dataset.dataset)
    return whole, [rows[index] for index in dataset.indices]


def divided(dataset: Dataset[Any]) -> str:
    """Of the labels or tokens that a participant shares with the others: where copies of the data differ in
    them, each peer divides them in another way."""
    assert isinstance(dataset, LabelledImages | TokenBlocks)
    return _of(dataset.labels if isinstance(dataset, LabelledImages) else dataset.tokens)


def _of(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.cpu().contiguous().numpy().data, digest_size=8).hexdigest()
