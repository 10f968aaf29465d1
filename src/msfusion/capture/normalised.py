"""Operations whose output's size a normalisation takes away again: the scale rule has nothing to do there."""

import torch

from .rules import is_view
from .rules.registry import base_name

_OVER_THE_BATCH = {"batch_norm", "instance_norm"}  # these take a bias away as well
_OVER_THE_UNITS = {"layer_norm", "group_norm", "rms_norm"}
_SAME_SIZE = {"contiguous", "clone", "to", "_to_copy", "alias", "detach"}


def size_is_removed(node: torch.fx.Node) -> bool:
    """Whether all that reads the operation's output, views aside, is a norm with that output as its input."""
    norms = _OVER_THE_BATCH if _has_bias(node) else _OVER_THE_BATCH | _OVER_THE_UNITS
    return bool(node.users) and all(_leads_to(user, node, norms) for user in node.users)


def _leads_to(node: torch.fx.Node, source: torch.fx.Node, norms: set[str]) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.args[:1] != (source,):
        return False
    if base_name(node.target) in norms:
        return True
    passes = is_view(node.target) or base_name(node.target) in _SAME_SIZE
    return passes and bool(node.users) and all(_leads_to(user, node, norms) for user in node.users)


def _has_bias(node: torch.fx.Node) -> bool:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given.get("bias") is not None
