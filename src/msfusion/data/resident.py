"""Data on the device that trains, where they fit."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from msfusion.data.examples import LabelledImages, TokenBlocks

_SHARE = 0.5  # of the free memory of a GPU that data may take; the rest is for training


def resident(
    data: Sequence[Dataset[Any]], device: torch.device, room: int | None = None
) -> list[Dataset[Any]]:
    """The datasets with their tensors on the device, those that they share once; batches are then cut, and
    augmented, there. As they are where they do not fit, and those of other kinds in any case.

    room: bytes that they may take; by default half of what is free on a GPU.
    """
    found = {id(tensor): tensor for one in data for _, tensor in _tensors(one)}
    if sum(tensor.nbytes for tensor in found.values()) > (_free(device) if room is None else room):
        return list(data)
    moved = {key: tensor.to(device) for key, tensor in found.items()}
    return [_with(one, {name: moved[id(tensor)] for name, tensor in _tensors(one)}) for one in data]


def _tensors(data: Dataset[Any]) -> Iterator[tuple[str, Tensor]]:
    """Field -> tensor of a dataset of this package."""
    if isinstance(data, LabelledImages | TokenBlocks):
        for field in dataclasses.fields(data):
            value = getattr(data, field.name)
            if isinstance(value, Tensor):
                yield field.name, value


def _with(data: Dataset[Any], tensors: dict[str, Tensor]) -> Dataset[Any]:
    return dataclasses.replace(data, **tensors) if tensors else data  # type: ignore[type-var]


def _free(device: torch.device) -> int:
    return int(_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
