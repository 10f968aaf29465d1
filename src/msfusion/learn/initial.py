"""Initial values of a model that no memory holds: made by its own code, straight into files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from msfusion.errors import UserError
from msfusion.learn.in_files import into_a_file
from msfusion.learn.local import seeded
from msfusion.learn.shards import SHARD_BYTES, Shards, Spec, create
from msfusion.learn.submodels import stored
from msfusion.models.meta import made_without_values, registering

Start: TypeAlias = Callable[[Mapping[str, Tensor]], None]
"""What a run does to some of a model's tensors before it begins, in place."""

_MOST_RESIDENT = 64_000_000  # bytes of mapped parameters that are looked at before they are released


def write_initial(
    build: Callable[[], nn.Module],
    folder: Path,
    seed: int,
    shard_bytes: int = SHARD_BYTES,
    start: Start | None = None,
) -> Shards:
    """Write the values that ``build()`` gives under ``seeded(seed)`` into a new checkpoint, bit for bit.

    The module is built twice: once without values, to learn names and shapes, and once with every parameter
    moved into its place in the files as it is registered, where all that the model's code then does to it
    happens. Memory: the largest parameter, and the buffers; where the model's code looks at values of its
    parameters while it makes them, they lie in temporary files the first time. ``UserError`` where ``build``
    makes a different module the second time. Parameters whose type is changed after they were made
    (``.half()`` on the whole module) are copied at the end, and held in memory until then.

    folder: a new one, which must not exist; its parents are made.
    shard_bytes: about how long a file of the checkpoint may be.
    start: what a run does to the values before it begins.
    """
    made: list[nn.Parameter] = []

    def first() -> nn.Module:
        made.clear()
        with seeded(seed, torch.device("cpu")), registering(_once(made, lambda _, p: into_a_file(p))):
            return build()

    model = made_without_values(first)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    specs = {name: Spec.of(tensor) for name, tensor in stored(model).items()}
    shards = create(folder, specs, shard_bytes)

    def mapped(number: int, parameter: nn.Parameter) -> nn.Parameter:
        if number >= len(made) or parameter.shape != made[number].shape:
            raise UserError(
                "expected the model's code to make the same parameters twice, got others: seed its choices"
            )
        name = names.get(id(made[number]))
        if name is None or specs[name].dtype != parameter.dtype:
            return parameter
        shards.release()
        parameter.data = shards[name].copy_(
            parameter.detach()
        )  # the object itself: code may have it by a name
        return parameter

    with seeded(seed, torch.device("cpu")), _Releasing(shards), registering(_once([], mapped)):
        model = build()
    for name, value in stored(model).items():
        if shards[name].data_ptr() != value.data_ptr():
            shards[name].copy_(value.detach())
            shards.release()
    if start:
        for name in shards:
            start({name: shards[name]})
            shards.release()
    shards.sync()
    shards.release()
    return shards


def _once(
    made: list[nn.Parameter], exchange: Callable[[int, nn.Parameter], nn.Parameter]
) -> Callable[[nn.Parameter], nn.Parameter]:
    """Exchange every parameter when it is registered first, by number; further registrations are ties."""
    known: set[int] = set()

    def registered(parameter: nn.Parameter) -> nn.Parameter:
        if id(parameter) in known:
            return parameter
        new = exchange(len(made), parameter)
        made.append(new)
        known.add(id(new))
        return new

    return registered


class _Releasing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what code that runs over a whole model leaves resident small."""

    def __init__(self, shards: Shards) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shards = shards
        self._touched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._touched += sum(t.nbytes for t in pytree.tree_leaves(args) if isinstance(t, Tensor))
        if self._touched > _MOST_RESIDENT:
            self._shards.release()
            self._touched = 0
        return out
