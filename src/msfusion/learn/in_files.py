"""Parameters whose memory is a file that vanishes with them."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from msfusion.learn.shards import extend


def into_a_file(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, its memory in a file that vanishes with it; as it is where it lies in one, or has
    no memory, or less than its shape says."""
    if is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return parameter
    places = list(zip(parameter.shape, parameter.stride(), strict=True))
    repeats = any(size > 1 and not stride for size, stride in places)
    if not repeats and parameter.untyped_storage().filename is None:
        size = 1 + sum((size - 1) * stride for size, stride in places)
        with tempfile.NamedTemporaryFile() as file:
            extend(file.fileno(), size * parameter.element_size(), Path(file.name))
            room = torch.from_file(file.name, shared=True, size=size, dtype=parameter.dtype)
        parameter.data = room.as_strided(parameter.shape, parameter.stride()).copy_(parameter.detach())
    return parameter
