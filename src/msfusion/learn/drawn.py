"""Models without values in which everything but the parameters is as in the model with values.

Where a model draws buffers, or tensors in attributes, at random, they depend on the seed and on what was
drawn before, such as the values of parameters.
"""

import hashlib
import random
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
from msfusion.learn.shards import extend
from msfusion.models.meta import made_without_values, registering

T = TypeVar("T")
Make = Callable[[], tuple[nn.Module, T]]

_TRIES = 8  # other seeds, where a generator has moved: two draws may be alike


def made_as_with_values(make: Make[T], seed: int) -> tuple[nn.Module, T, str]:
    """What ``make`` returns, the module with its parameters on the meta device and all else as ``make`` gives
    it with values under ``seeded(seed)``; and a hash of what was drawn of that, empty where nothing was.

    The module is made under other seeds as well, without values. Only where one differs in more than
    parameters, or where something follows from values of parameters, it is made with values for a moment, in
    temporary files. Seen are buffers, and tensors, arrays and numbers in attributes of modules, or in lists,
    tuples and dicts there.
    """
    (module, example), moved = made_without_values(lambda: _made(make, seed))
    own = _digests(module)
    others = [
        _digests(made_without_values(lambda i=i: _made(make, derive(seed, "another", i)))[0][0])  # type: ignore[misc]
        for i in range(_TRIES if moved else 1)
    ]
    if all(other == own for other in others) and not _follows_from_values(module):
        return module, example, ""
    with registering(_into_a_file):
        (real, example), _ = _made(make, seed)
    for part, whole in zip(module.modules(), real.modules(), strict=True):
        for name, value in vars(part).items():
            if any(map(_may_be_drawn, pytree.tree_leaves(value))):
                vars(part)[name] = pytree.tree_map(_exchanged, value, vars(whole)[name])
    drawn = _digests(module) - set[str]().union(*others)
    return module, example, hashlib.blake2b(repr(sorted(drawn)).encode(), digest_size=16).hexdigest()


def _made(make: Make[T], seed: int) -> tuple[tuple[nn.Module, T], bool]:
    """What is made under a seed, and whether a generator has moved: parameters without values do not."""
    with seeded(seed, torch.device("cpu")):
        before = _generators()
        return make(), _generators() != before


def _generators() -> tuple[bytes, ...]:
    states = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False))
    return tuple(str(state).encode() for state in states)


def _exchanged(mine: Any, real: Any) -> Any:
    return real if _may_be_drawn(mine) else mine


def _may_be_drawn(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return not (isinstance(leaf, nn.Parameter) or _is_view_of_parameter(leaf))
    return isinstance(leaf, np.ndarray | int | float | complex)


def _is_view_of_parameter(leaf: Tensor) -> bool:
    return leaf.is_meta and (leaf.requires_grad or leaf._is_view())


def _held(module: nn.Module) -> list[tuple[str, Any]]:
    """All that may be drawn, by where it lies."""
    return [
        (f"{path}.{name}.{number}", leaf)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        for number, leaf in enumerate(pytree.tree_leaves(value))
        if _may_be_drawn(leaf)
    ]


def _follows_from_values(module: nn.Module) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_meta for _, leaf in _held(module))


def _digests(module: nn.Module) -> set[str]:
    """Where something lies that may be drawn, with a hash of it."""
    return {
        f"{where}: {hashlib.blake2b(_bytes(leaf), digest_size=16).hexdigest()}"
        for where, leaf in _held(module)
    }


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        if value.is_meta:
            return b""
        value = value.detach().cpu()
        value = (value if value.layout == torch.strided else value.to_dense()).resolve_conj().resolve_neg()
        value = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def _into_a_file(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, its memory in a file that vanishes with it."""
    storage = parameter.untyped_storage()
    if not parameter.is_meta and storage.nbytes():
        with tempfile.NamedTemporaryFile() as file:
            extend(file.fileno(), storage.nbytes(), Path(file.name))
            size = storage.nbytes() // parameter.element_size()
            room = torch.from_file(file.name, shared=True, size=size, dtype=parameter.dtype)
        place = (parameter.shape, parameter.stride(), parameter.storage_offset())
        parameter.data = room.as_strided(*place).copy_(parameter.detach())
    return parameter
