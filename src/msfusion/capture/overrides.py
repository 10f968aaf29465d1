"""Dims declared by hand, for what cannot be derived.

A declaration enters as labels before the graph is propagated, so it names, merges and refines axes like any
other knowledge; but no reason pins an axis that it names. It is the user's word, and the permutation proof
holds it to that.
"""

import re
from collections.abc import Mapping, Sequence

import torch

from msfusion.core.axes import Axis, Concat, Dim, Fixed, Product, parse
from msfusion.errors import UserError

from .labels import Label, concat, pinned, product, unify
from .rules import Labels


def declared_labels(
    tensors: Mapping[str, torch.Tensor], overrides: Mapping[str, Sequence[str]]
) -> dict[str, Labels]:
    """Labels of the tensors whose names match a pattern, the first one that does.

    ``*`` matches any text, ``{}`` in a dim stands for what the first ``*`` matched. ``UserError`` for a
    pattern that matches nothing, a dim that does not parse or does not fit, and an axis of two sizes.
    """
    leaves: dict[str, Label] = {}
    out: dict[str, Labels] = {}
    for pattern, texts in overrides.items():
        expression = re.compile(re.escape(pattern).replace(r"\*", "(.*)"))
        matches = {name: match for name in tensors if (match := expression.fullmatch(name))}
        if not matches:
            raise UserError(
                f"expected the override {pattern!r} to match a parameter or buffer, got none;"
                f" names are such as {next(iter(tensors), 'none')}"
            )
        for name, match in matches.items():
            if name not in out:
                filling = match.group(1) if match.groups() else ""
                dims = _dims(name, tensors[name], [text.replace("{}", filling) for text in texts])
                out[name] = Labels(_own(_label(dim, leaves)) for dim in dims)
    return out


def _dims(name: str, tensor: torch.Tensor, texts: Sequence[str]) -> list[Dim]:
    try:
        dims = [parse(text) for text in texts]
    except ValueError as error:
        raise UserError(f"expected dims such as '3*heads:4*16' in the override of {name}: {error}") from error
    if tuple(dim.size for dim in dims) != tuple(tensor.shape):
        sizes = ", ".join(f"{text} ({dim.size})" for text, dim in zip(texts, dims, strict=True))
        raise UserError(
            f"expected the override of {name} to have its shape {tuple(tensor.shape)}, got {sizes};"
            " give one dim per dimension, of the same size"
        )
    return dims


def _own(label: Label) -> Label:
    """The same as a label that no other dimension has, by which the dimension can be told."""
    if label.size == 1:
        return label
    own = Label(label.size)
    unify(own, label)
    return own


def _label(dim: Dim, leaves: dict[str, Label]) -> Label:
    match dim:
        case Fixed(size=size):
            return pinned(size, "declared whole")
        case Axis(name=name, size=size):
            leaf = leaves.setdefault(name, Label(size, declared=name))
            if leaf.size != size:
                raise UserError(
                    f"expected one size of axis {name} in the overrides, got {leaf.size} and {size}"
                )
            return leaf
        case Product(factors=parts):
            return product(*(_label(part, leaves) for part in parts))
        case Concat(parts=parts):
            return concat(*(_label(part, leaves) for part in parts))
