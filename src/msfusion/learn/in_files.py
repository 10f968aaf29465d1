"""Parameters whose memory is a file that vanishes with them."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from msfusion.learn.shards import extend


def into_a_file(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, its memory in a file that vanishes with it; as it is where it lies in one, or has
    no memory."""
    storage = parameter.untyped_storage()
    if not parameter.is_meta and storage.nbytes() and storage.filename is None:
        with tempfile.NamedTemporaryFile() as file:
            extend(file.fileno(), storage.nbytes(), Path(file.name))
            size = storage.nbytes() // parameter.element_size()
            room = torch.from_file(file.name, shared=True, size=size, dtype=parameter.dtype)
        place = (parameter.shape, parameter.stride(), parameter.storage_offset())
        parameter.data = room.as_strided(*place).copy_(parameter.detach())
    return parameter
