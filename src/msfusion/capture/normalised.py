"""Operations whose output's size a normalisation takes away again: the scale rule has nothing to do there."""

import torch

from .rules import is_view
from .rules.registry import base_name

_LINEAR = {"linear", "matmul", "mm", "bmm", "mv", "einsum", "convolution"} | {
    f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3)
}
_OVER_THE_BATCH = {"batch_norm", "instance_norm"}  # these take a bias per channel away as well
_OVER_THE_UNITS = {"layer_norm", "group_norm", "rms_norm"}
_SAME_SIZE = {"contiguous", "clone", "to", "_to_copy", "alias", "detach"}


def size_is_removed(node: torch.fx.Node) -> bool:
    """Whether all that reads the output of a linear operation, views aside, is a norm with that output as its
    input. A bias has to lie on the channels of the norm."""
    if not isinstance(node.target, torch._ops.OpOverload) or base_name(node.target) not in _LINEAR:
        return False
    if not _has_bias(node):
        return _read_by(node, _OVER_THE_BATCH | _OVER_THE_UNITS, None)
    shape = tuple(node.meta["val"].shape)
    by_channel = base_name(node.target) != "linear" or len(shape) == 2
    return by_channel and _read_by(node, _OVER_THE_BATCH, shape[:2])


def _read_by(source: torch.fx.Node, norms: set[str], channels: tuple[int, ...] | None) -> bool:
    return bool(source.users) and all(_leads_to(user, source, norms, channels) for user in source.users)


def _leads_to(
    node: torch.fx.Node, source: torch.fx.Node, norms: set[str], channels: tuple[int, ...] | None
) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.args[:1] != (source,):
        return False
    if base_name(node.target) in norms:
        return channels is None or tuple(source.meta["val"].shape[:2]) == channels
    passes = is_view(node.target) or base_name(node.target) in _SAME_SIZE
    return passes and _read_by(node, norms, channels)


def _has_bias(node: torch.fx.Node) -> bool:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given.get("bias") is not None
