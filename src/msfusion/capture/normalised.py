"""Operations whose output's size a normalisation takes away again: the scale rule has nothing to do there."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from .graph import module_path
from .operands import arguments
from .rules import is_view
from .rules.registry import CONVOLUTIONS, base_name

_LINEAR = {"linear", "matmul", "mm", "bmm", "mv", "einsum", "convolution", *CONVOLUTIONS}
_OVER_THE_BATCH = {"batch_norm", "instance_norm"}  # these take a bias per channel away as well
_OVER_THE_UNITS = {"layer_norm", "group_norm", "rms_norm"}
_SAME_SIZE = {"contiguous", "clone", "to", "_to_copy", "alias", "detach"}


def size_is_removed(node: torch.fx.Node, fixed: Collection[str]) -> bool:
    """Whether all that reads the output of a linear operation, views aside, is a norm with that output as its
    input. A bias has to lie on the channels of the norm.

    fixed: modules of norms that take no size away.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or base_name(node.target) not in _LINEAR:
        return False
    if not _has_bias(node):
        return _read_by(node, _Norms(_OVER_THE_BATCH | _OVER_THE_UNITS, fixed), None)
    shape = tuple(node.meta["val"].shape)
    by_channel = base_name(node.target) != "linear" or len(shape) == 2
    return by_channel and _read_by(node, _Norms(_OVER_THE_BATCH, fixed), shape[:2])


@dataclass(frozen=True)
class _Norms:
    """Norms by the names of their operations, but for those of some modules."""

    names: Collection[str]
    but: Collection[str]

    def __contains__(self, node: torch.fx.Node) -> bool:
        op = node.target
        named = isinstance(op, torch._ops.OpOverload) and base_name(op) in self.names
        return named and module_path(node) not in self.but


def _read_by(source: torch.fx.Node, norms: _Norms, channels: tuple[int, ...] | None) -> bool:
    return bool(source.users) and all(_leads_to(user, source, norms, channels) for user in source.users)


def _leads_to(
    node: torch.fx.Node, source: torch.fx.Node, norms: _Norms, channels: tuple[int, ...] | None
) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.args[:1] != (source,):
        return False
    if node in norms:
        return channels is None or tuple(source.meta["val"].shape[:2]) == channels
    passes = is_view(node.target) or base_name(node.target) in _SAME_SIZE
    return passes and _read_by(node, norms, channels)


def _has_bias(node: torch.fx.Node) -> bool:
    return arguments(node).get("bias") is not None
