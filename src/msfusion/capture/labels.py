"""The label algebra: what each dimension of each tensor of a traced model is made of.

A *label* stands for one dimension. It is a leaf, a row-major product of labels, or a concatenation of labels.
Equating two labels (``unify``) makes one an alias of the other and splits leaves where one side shows more
structure: a dimension of 768 that is viewed as 12 x 64 turns from a leaf into a product of two leaves.

A leaf that is left unpinned in the end is an axis: its units can be permuted, and hence left out. Pinning a
leaf, merging two and splitting one only ever take freedom away, so a rule that does not know better pins.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

Form = Literal["leaf", "alias", "product", "concat"]


class Label:
    """One dimension of a tensor; see the module text.

    size: number of indices.
    form, parts: how it is made up; an alias has the label that it stands for as its only part.
    reason: why a leaf is pinned, or None.
    used: an operation other than a view has read it.
    contracted: summed over where no parameter can make up for a narrower sum, as the channels of a query and
        a key are.
    declared: name of an axis that the user declared; it is not pinned.
    """

    __slots__ = ("contracted", "declared", "form", "parts", "reason", "size", "used")

    def __init__(self, size: int, reason: str | None = None, declared: str | None = None) -> None:
        self.size = size
        self.declared = declared
        self.form: Form = "leaf"
        self.parts: list[Label] = []
        self.reason = reason
        self.used = False
        self.contracted = False

    def __repr__(self) -> str:
        label = resolve(self)
        if label.form == "leaf":
            return f"{label.size}{'!' if label.reason else ''}"
        return "(" + ("*" if label.form == "product" else " + ").join(map(repr, label.parts)) + ")"


ONE = Label(1, "size 1")


def pinned(size: int, reason: str) -> Label:
    """A label that is never permuted or cut."""
    return ONE if size == 1 else Label(size, reason)


def resolve(label: Label) -> Label:
    """The label that an alias stands for in the end; others are themselves."""
    while label.form == "alias":
        target = label.parts[0]
        if target.form == "alias":
            label.parts[0] = target.parts[0]
        label = target
    return label


def leaves(label: Label) -> Iterator[Label]:
    """All leaves in a label, outer and first ones first."""
    label = resolve(label)
    if label.form == "leaf":
        yield label
    for part in label.parts:
        yield from leaves(part)


def pin(label: Label, reason: str) -> None:
    """Pin all leaves in a label but declared ones; the first reason stays."""
    for leaf in leaves(label):
        if leaf.declared is None:
            leaf.reason = leaf.reason or reason


def mark_contracted(label: Label) -> None:
    """Cutting it would change the scale of, say, attention logits, so it is not cut unless named."""
    for leaf in leaves(label):
        leaf.contracted = True


def is_pinned(label: Label) -> bool:
    """Whether no leaf in the label is free."""
    return all(leaf.reason for leaf in leaves(label))


def factors(label: Label) -> list[Label]:
    """The label as a row-major product of labels that are no products themselves; size 1 has none."""
    label = resolve(label)
    if label.form == "product":
        return [factor for part in label.parts for factor in factors(part)]
    return [] if label.size == 1 else [label]


def segments(label: Label) -> list[Label]:
    """The label as a concatenation of labels that are no concatenations themselves."""
    label = resolve(label)
    if label.form == "concat":
        return [segment for part in label.parts for segment in segments(part)]
    return [label]


def product(*parts: Label) -> Label:
    """Row-major product, outer first."""
    return _combined("product", [factor for part in parts for factor in factors(part)])


def concat(*parts: Label) -> Label:
    """One behind the other."""
    return _combined("concat", [segment for part in parts for segment in segments(part) if segment.size])


def _combined(form: Form, parts: list[Label]) -> Label:
    size = math.prod(p.size for p in parts) if form == "product" else sum(p.size for p in parts)
    if not parts or size == 1:
        return ONE
    if len(parts) == 1:
        return parts[0]
    if all(part.form == "leaf" and part.reason for part in parts):
        return Label(size, parts[0].reason)
    label = Label(size)
    label.form, label.parts = form, parts
    return label


def _refine(leaf: Label, form: Form, sizes: Sequence[int]) -> list[Label]:
    """Split a leaf into new leaves that inherit what is known of it."""
    parts = []
    for size in sizes:
        part = Label(size, leaf.reason, leaf.declared)
        part.used, part.contracted = leaf.used, leaf.contracted
        parts.append(part)
    leaf.form, leaf.parts = form, parts
    return parts


def unify(first: Label, second: Label, why: str = "two layouts that do not fit") -> None:
    """Equate two labels of the same size: split leaves to their common refinement, pin what has none."""
    first, second = resolve(first), resolve(second)
    if first is second or first.size == 1 == second.size:
        return
    if first.size != second.size:
        raise ValueError(f"expected labels of equal size, got {first} and {second}")
    if second.form == "leaf" and (first.form != "leaf" or first.declared):
        first, second = second, first
    if first.form == "leaf":
        _make_alias(first, second)
    elif first.form == second.form == "concat":
        _align(segments(first), segments(second), "concat", why)
    else:
        _align(factors(first), factors(second), "product", why)


def _make_alias(leaf: Label, target: Label) -> None:
    leaf.form, leaf.parts = "alias", [target]
    if leaf.reason:
        pin(target, leaf.reason)
    for other in leaves(target):
        if leaf.declared and other.declared is None:
            other.declared, other.reason = leaf.declared, None
        other.used |= leaf.used
        other.contracted |= leaf.contracted


def _align(left: list[Label], right: list[Label], form: Form, why: str) -> None:
    """Equate two lists of factors (segments) of equal total size, part by part."""
    flat = factors if form == "product" else segments
    while left and right:
        a, b = resolve(left[0]), resolve(right[0])
        left, right = left[1:], right[1:]
        if form in (a.form, b.form):  # refined by an earlier step
            left, right = flat(a) + left, flat(b) + right
            continue
        if a.size == b.size:
            unify(a, b, why)
            continue
        if a.size > b.size:
            a, b, left, right = b, a, right, left
        parts = split_outer(b, a.size) if form == "product" else split_first(b, a.size)
        if parts is None:
            for label in (a, b, *left, *right):
                pin(label, why)
            return
        unify(a, parts[0], why)
        right = [parts[1], *right]


def split_outer(label: Label, size: int) -> tuple[Label, Label] | None:
    """The label as a product of an outer factor of ``size`` and the rest; None where it cannot be one."""
    label = resolve(label)
    if label.size % size:
        return None
    if label.form == "leaf":
        outer, inner = _refine(label, "product", [size, label.size // size])
        return outer, inner
    if label.form == "product":
        return _split_product(factors(label), size)
    return _equal_segments(label, size)


def _split_product(rest: list[Label], size: int) -> tuple[Label, Label] | None:
    head: list[Label] = []
    while rest and size > 1:
        part = resolve(rest[0])
        if size % part.size == 0:
            head.append(part)
            size //= part.size
            rest = rest[1:]
            continue
        parts = split_outer(part, size)
        if parts is None:
            return None
        head.append(parts[0])
        rest = [parts[1], *rest[1:]]
        size = 1
    return product(*head), product(*rest)


def _equal_segments(label: Label, number: int) -> tuple[Label, Label] | None:
    """A concatenation seen as ``number`` equal chunks: all chunks are equated, the number is a counter."""
    step = label.size // number
    chunks: list[Label] = []
    rest = label
    while len(chunks) < number - 1:
        parts = split_first(rest, step)
        if parts is None:
            return None
        chunks.append(parts[0])
        rest = parts[1]
    for chunk in (*chunks[1:], rest):
        unify(chunks[0], chunk)
    counter = pinned(number, "counts equal segments")
    label = resolve(label)
    label.form, label.parts = "product", [counter, chunks[0]]
    return counter, chunks[0]


def split_first(label: Label, size: int) -> tuple[Label, Label] | None:
    """The label as a first segment of ``size`` and the rest; None where no boundary can lie there."""
    label = resolve(label)
    if label.form == "leaf":
        first, second = _refine(label, "concat", [size, label.size - size])
        return first, second
    if label.form == "concat":
        return _split_concat(segments(label), size)
    outer, *inner_factors = factors(label)
    inner = product(*inner_factors)
    if size % inner.size:
        return None
    pin(outer, "counts segments")
    number = size // inner.size
    return (
        product(pinned(number, "counts segments"), inner),
        product(pinned(outer.size - number, "counts segments"), inner),
    )


def _split_concat(rest: list[Label], size: int) -> tuple[Label, Label] | None:
    head: list[Label] = []
    while rest and size > 0:
        part = resolve(rest[0])
        if size >= part.size:
            head.append(part)
            size -= part.size
            rest = rest[1:]
            continue
        parts = split_first(part, size)
        if parts is None:
            return None
        head.append(parts[0])
        rest = [parts[1], *rest[1:]]
        size = 0
    return concat(*head), concat(*rest)
