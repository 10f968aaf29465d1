"""The table of rules, what a rule is given, and the helpers that most rules need."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from msfusion.capture.labels import ONE, Label, mark_contracted, pin, pinned, unify


class Labels(tuple[Label, ...]):
    """The labels of one tensor, one per dimension.

    activation: the tensor depends on the inputs of the model, not on its parameters alone.
    origin: the parameter that the tensor is a view of, if it is one.
    """

    activation: bool = False
    origin: str | None = None


Result = Labels | Sequence[Labels] | None


@dataclass
class Call:
    """One operation as its rule sees it: labels in place of tensors.

    op: name without namespace, overload and the underscore of in-place forms.
    where: for reasons, e.g. ``linear at linear_3``.
    arguments: schema name -> argument, defaults filled in.
    raw: schema name -> argument with (fake) tensors instead of labels, where given.
    shapes: one per output tensor.
    read: outputs that anything uses.
    summed: parameters, and the dimensions of theirs that the operation sums over.
    computed: the same of weights that are computed from parameters.
    """

    op: str
    where: str
    arguments: dict[str, Any]
    raw: dict[str, Any]
    shapes: list[tuple[int, ...]]
    read: frozenset[int] = frozenset()
    summed: list[tuple[str, Label]] = field(default_factory=list)
    computed: list[tuple[Labels, Label]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def tensors(self) -> list[Labels]:
        """All tensor arguments, in the order of the schema."""
        return labels_in(self.arguments)

    def pinned(self, shape: Iterable[int]) -> Labels:
        return pinned_all(shape, self.where)

    def sums(self, tensor: Labels, label: Label) -> None:
        """Record that the operation sums over this dimension of ``tensor``, times an activation. Where the
        tensor is an activation, too, nothing makes up for it and the dimension is not cut unless named."""
        if tensor.origin is not None:
            self.summed.append((tensor.origin, label))
        elif not tensor.activation:
            self.computed.append((tensor, label))
        else:
            mark_contracted(label)


Rule = Callable[[Call], Result]

CONVOLUTIONS = frozenset(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3))
"""Names of the operations, and of the functions of PyTorch's that call them."""

_RULES: dict[str, Rule] = {}
_VIEWS: set[str] = set()


def rule(names: str, *, view: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name (separated by blanks). A rule returns the labels of the
    outputs, or None where it does not know this form of the operation.

    view: the outputs are parts or other arrangements of the first input and read nothing of it.
    """

    def register(function: Rule) -> Rule:
        for name in names.split():
            _RULES[name] = function
            if view:
                _VIEWS.add(name)
        return function

    return register


def find_rule(op: torch._ops.OpOverload) -> Rule | None:
    """The rule for an operation: by name, else by the tag that PyTorch gives it."""
    name = base_name(op)
    if name in _RULES:
        return _RULES[name]
    if torch.Tag.pointwise in op.tags:
        return _RULES["pointwise"]
    return _RULES["reduction"] if torch.Tag.reduction in op.tags else None


def base_name(op: torch._ops.OpOverload) -> str:
    """``aten::relu_.default`` -> ``relu``; names that exist only with an underscore keep none either."""
    name = op._schema.name.split("::")[1]
    return name if name.startswith("__") else name.rstrip("_")


def is_view(op: object) -> bool:
    return isinstance(op, torch._ops.OpOverload) and base_name(op) in _VIEWS


def labels_in(tree: Any) -> list[Labels]:
    """All tensor labels in nested arguments."""
    found = pytree.tree_leaves(tree, is_leaf=lambda x: isinstance(x, Labels))
    return [x for x in found if isinstance(x, Labels)]


def pinned_all(shape: Iterable[int], reason: str) -> Labels:
    return Labels(pinned(size, reason) for size in shape)


def free(shape: Iterable[int]) -> Labels:
    """New leaves: nothing is known yet."""
    return Labels(Label(size) if size > 1 else pinned(size, "empty") for size in shape)


def dimension(index: int, ndim: int) -> int:
    return index + ndim if index < 0 else index


def dimensions(index: int | Sequence[int] | None, ndim: int) -> list[int]:
    """The dimensions that a ``dim`` argument names; none or an empty list means all."""
    if index is None or index == []:
        return list(range(ndim))
    return [dimension(i, ndim) for i in ([index] if isinstance(index, int) else index)]


def replaced(labels: Sequence[Label], index: int, label: Label) -> Labels:
    """The same labels with one exchanged."""
    return Labels([*labels[:index], label, *labels[index + 1 :]])


def pin_all(labels: Iterable[Label], reason: str) -> None:
    for label in labels:
        pin(label, reason)


def broadcast(tensors: Iterable[Sequence[Label]], shape: Sequence[int], why: str) -> Labels:
    """Equate the labels of tensors that broadcast to ``shape``."""
    out = []
    tensors = list(tensors)
    for i in range(1, len(shape) + 1):
        met = [t[-i] for t in tensors if len(t) >= i and t[-i].size == shape[-i]]
        for other in met[1:]:
            unify(met[0], other, why)
        out.append(met[0] if met and shape[-i] != 1 else pinned(shape[-i], "broadcast"))
    return Labels(reversed(out))


def padded(labels: Sequence[Label], ndim: int) -> list[Label]:
    """Labels with leading dimensions of size 1 up to ``ndim``."""
    return [ONE] * (ndim - len(labels)) + list(labels)
