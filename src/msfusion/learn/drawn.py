"""Models without values in which everything but the parameters is as in the model with values.

Where a model draws buffers, or tensors in attributes, at random, they depend on the seed and on what was
drawn before, such as the values of parameters.
"""

import hashlib
import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msfusion.core.seeds import derive
from msfusion.learn.in_files import into_a_file
from msfusion.learn.local import seeded
from msfusion.models.meta import made_without_values, registering

T = TypeVar("T")
Make = Callable[[], tuple[nn.Module, T]]

_TRIES = 4  # other seeds, where a generator has moved: two draws may be alike


def made_as_with_values(make: Make[T], seed: int) -> tuple[nn.Module, T, str]:
    """What ``make`` returns, the module with its parameters on the meta device and all else as ``make`` gives
    it with values under ``seeded(seed)``; and a hash of what was drawn of that, empty where nothing was.

    The module is made under other seeds as well, without values. Only where one differs in more than
    parameters, or where something follows from values of parameters, it is made with values for a moment, in
    temporary files; a coin falls alike under all of them once in sixteen times. Seen are buffers, and
    tensors, arrays and numbers in attributes of modules, or in lists, tuples and dicts there. A module whose
    code looks at values of its parameters keeps them, in such files.
    """
    others = _others(make, seed)
    (module, example), _ = made_without_values(lambda: _made(make, seed))
    own = _digests(module)
    if all(other == own for other in others) and not _follows_from_values(module):
        return module, example, ""
    if _without_values(module):
        (real, example), _ = _made(make, seed)
        _exchange(module, real)
    drawn = _digests(module) - others[0].intersection(*others)
    return module, example, hashlib.blake2b(repr(sorted(drawn)).encode(), digest_size=16).hexdigest()


def _others(make: Make[T], seed: int) -> list[set[str]]:
    """The digests under other seeds: several where a generator moved though parameters had no values."""
    out: list[set[str]] = []
    for number in range(_TRIES):
        (module, _), moved = made_without_values(lambda n=number: _made(make, derive(seed, "another", n)))  # type: ignore[misc]
        out.append(_digests(module))
        if not (moved and _without_values(module)):
            break
    return out


def _made(make: Make[T], seed: int) -> tuple[tuple[nn.Module, T], bool]:
    """What is made under a seed, and whether a generator has moved; values lie in temporary files."""
    with seeded(seed, torch.device("cpu")), registering(into_a_file):
        before = _generators()
        return make(), _generators() != before


def _generators() -> tuple[bytes, ...]:
    states = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False))
    return tuple(str(state).encode() for state in states)


def _without_values(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def _exchange(module: nn.Module, real: nn.Module) -> None:
    """Give a module all that the real one holds, but for parameters."""
    may = _drawable(module)
    for part, whole in zip(module.modules(), real.modules(), strict=True):
        for name, value in vars(part).items():
            found = [may(leaf) for leaf in pytree.tree_leaves(value)]
            if found and all(found):
                vars(part)[name] = vars(whole)[name]
            elif any(found):
                given = vars(whole)[name]
                vars(part)[name] = pytree.tree_map(lambda mine, its: its if may(mine) else mine, value, given)


def _drawable(module: nn.Module) -> Callable[[Any], bool]:
    """Whether a leaf may be drawn, or follow from what is: it is no parameter, and no view of one."""
    storages = {p.untyped_storage()._cdata for p in module.parameters() if p.is_meta}

    def may(leaf: Any) -> bool:
        if not isinstance(leaf, Tensor):
            return isinstance(leaf, np.ndarray | int | float | complex)
        view = leaf.is_meta and (leaf.requires_grad or leaf.untyped_storage()._cdata in storages)
        return not (isinstance(leaf, nn.Parameter) or view)

    return may


def _held(module: nn.Module) -> list[tuple[str, Any]]:
    """All that may be drawn, by where it lies."""
    may = _drawable(module)
    return [
        (f"{path}.{name}.{number}", leaf)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        for number, leaf in enumerate(pytree.tree_leaves(value))
        if may(leaf)
    ]


def _follows_from_values(module: nn.Module) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_meta for _, leaf in _held(module))


def _digests(module: nn.Module) -> set[str]:
    """Where something lies that may be drawn, with a hash of it."""
    hashes = [(where, hashlib.blake2b(_bytes(leaf), digest_size=16)) for where, leaf in _held(module)]
    return {f"{where}: {found.hexdigest()}" for where, found in hashes}


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        if value.is_meta:
            return b""
        value = value.detach().cpu()
        value = (value if value.layout == torch.strided else value.to_dense()).resolve_conj().resolve_neg()
        value = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
