"""Models without values in which everything but the parameters is as in the model with values.

Where a model draws buffers, or tensors in attributes, at random, they depend on the seed and on what was
drawn before, such as the values of parameters.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msfusion.core.seeds import derive
from msfusion.learn.local import seeded
from msfusion.learn.shards import scratch
from msfusion.models.meta import made_without_values, registering

T = TypeVar("T")


def made_as_with_values(make: Callable[[], tuple[nn.Module, T]], seed: int) -> tuple[nn.Module, T, str]:
    """What ``make`` returns, the module with its parameters on the meta device and all else as ``make`` gives
    it with values under ``seeded(seed)``; and a hash of what was drawn of that, empty where nothing was.

    The module is made under two seeds, without values. Only where the two differ in more than parameters, it
    is made with values for a moment, in files without a name in the folder for temporary files. Seen are
    buffers, and tensors, arrays and numbers in attributes of modules, or in lists, tuples and dicts there.
    """

    def under(own: int) -> tuple[nn.Module, T]:
        with seeded(own, torch.device("cpu")):
            return make()

    others = _digests(made_without_values(lambda: under(derive(seed, "another")))[0])
    module, example = made_without_values(lambda: under(seed))
    if others == _digests(module):
        return module, example, ""
    with registering(_into_a_file):
        real, example = under(seed)
    for part, whole in zip(module.modules(), real.modules(), strict=True):
        vars(part).update({name: value for name, value in _held(whole).items() if name in _held(part)})
    drawn = _digests(module) - others
    return module, example, hashlib.blake2b(repr(sorted(drawn)).encode(), digest_size=16).hexdigest()


def _held(part: nn.Module) -> dict[str, Any]:
    """The attributes of a module that hold what may be drawn, and no parameter; its buffers are one."""
    return {
        name: value
        for name, value in vars(part).items()
        for leaves in [pytree.tree_leaves(value)]
        if any(map(_may_be_drawn, leaves)) and not any(map(_of_parameters, leaves))
    }


def _may_be_drawn(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | np.ndarray | int | float | complex)


def _of_parameters(leaf: Any) -> bool:
    return isinstance(leaf, nn.Parameter | nn.Module) or (isinstance(leaf, Tensor) and leaf.is_meta)


def _digests(module: nn.Module) -> set[str]:
    """Where something lies that may be drawn, with a hash of it."""
    return {
        f"{path}.{name}.{number}: {hashlib.blake2b(_bytes(leaf), digest_size=16).hexdigest()}"
        for path, part in module.named_modules()
        for name, value in _held(part).items()
        for number, leaf in enumerate(pytree.tree_leaves(value))
        if _may_be_drawn(leaf)
    }


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def _into_a_file(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, its memory in a file that vanishes with it."""
    if not parameter.is_meta:
        size = parameter.untyped_storage().nbytes() // parameter.element_size()
        room, _ = scratch(Path(tempfile.gettempdir()), (size,), parameter.dtype)
        place = (parameter.shape, parameter.stride(), parameter.storage_offset())
        parameter.data = room.as_strided(*place).copy_(parameter.detach())
    return parameter
