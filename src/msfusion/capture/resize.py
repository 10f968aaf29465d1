"""The size constants of a captured graph at other widths.

An export bakes sizes in: the shape of a view, the bounds of a slice, the number of groups. The labels say
what each of them is made of, so what it becomes at other widths is known; these numbers are what a narrow
copy of the module has to arrive at by itself (the oracle of ``narrow``).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from msfusion.core.axes import Widths

from .labels import Label, factors, product, resolve, segments
from .operands import arguments
from .propagate import Propagation
from .rearrange import reshape
from .rules import Labels
from .rules.registry import base_name, dimension, labels_in, padded


@dataclass(frozen=True)
class Sizes:
    """Sizes and places at other widths. names: leaf -> axis."""

    names: Mapping[Label, str]
    widths: Widths

    def size(self, label: Label) -> int:
        label = resolve(label)
        if label.form == "leaf":
            return self.widths.get(self.names.get(label, ""), label.size)
        sizes = [self.size(part) for part in label.parts]
        return math.prod(sizes) if label.form == "product" else sum(sizes)

    def shape(self, labels: Sequence[Label]) -> tuple[int, ...]:
        return tuple(map(self.size, labels))

    def place(self, label: Label, index: int) -> int:
        """Where a boundary of the full dimension comes to lie."""
        label = resolve(label)
        if index <= 0:
            return index
        if index >= label.size:
            return self.size(label) if index == label.size else index
        if label.form == "concat":
            return self._place_in_segments(segments(label), index)
        if label.form == "product":
            _, *inner = factors(label)
            step = product(*inner)
            if index % step.size == 0:
                return index // step.size * self.size(step)
        return index

    def _place_in_segments(self, parts: Sequence[Label], index: int) -> int:
        passed = 0
        for part in parts:
            if index <= part.size:
                return passed + self.place(part, index)
            passed += self.size(part)
            index -= part.size
        return passed


@dataclass(frozen=True)
class Change:
    """One operation whose constants change.

    arguments: schema name -> new value; changed: (old, new) pairs of the integers in them.
    target: the operation in its place, where a split becomes uneven.
    """

    node: torch.fx.Node
    target: Any
    arguments: Mapping[str, Any]
    changed: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Site:
    """An operation with size constants: its arguments, the labels of its inputs and outputs."""

    arguments: Mapping[str, Any]
    values: Mapping[torch.fx.Node, Any]
    out: Any
    sizes: Sizes

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def labels(self, name: str) -> Labels:
        found: Labels = self.values[self.arguments[name]]
        return found

    def rewritten(self, old: Sequence[Any], labels: Sequence[Label]) -> list[Any]:
        """Sizes that the labels explain, at the new widths; -1 stays.

        A symbolic size that is a multiple of a width (batch times heads) becomes the fraction of it.
        """
        return [self._rewritten(size, label) for size, label in zip(old, labels, strict=True)]

    def _rewritten(self, size: Any, label: Label) -> Any:
        label, new = resolve(label), self.sizes.size(label)
        if isinstance(size, int):
            return new if size == label.size else size
        return Fraction(new, label.size) if label.form == "product" and new != label.size else size


Resize = Callable[[Site], dict[str, Any]]
_RESIZES: dict[str, Resize] = {}


def _resizes(names: str) -> Callable[[Resize], Resize]:
    def register(function: Resize) -> Resize:
        _RESIZES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def changes(found: Propagation, nodes: Iterator[torch.fx.Node], sizes: Sizes) -> list[Change]:
    """All operations among ``nodes`` whose size constants change at the new widths."""
    out = (change_of(found, node, sizes) for node in nodes)
    return [change for change in out if change is not None and (change.changed or change.arguments)]


def change_of(found: Propagation, node: torch.fx.Node, sizes: Sizes) -> Change | None:
    """What becomes of the size constants of one operation; None where it has none."""
    op = node.target
    labels = found.values.get(node)
    if not isinstance(op, torch._ops.OpOverload) or not labels_in(labels):
        return None
    resize = _RESIZES.get(base_name(op))
    if resize is None:
        return None
    given = arguments(node)
    site = Site(given, found.values, labels, sizes)
    try:
        new = resize(site)
    except (KeyError, AttributeError, TypeError, ValueError, IndexError):  # labels of a form not foreseen
        return None
    new = {name: value for name, value in new.items() if given.get(name) != value}
    target = torch.ops.aten.split_with_sizes.default if "split_sizes" in new else op
    return Change(node, target, new, tuple(_changed_integers(given, new)))


def _changed_integers(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for name, value in new.items():
        before, after = old.get(name), value
        pairs = zip(before, after, strict=False) if isinstance(before, list | tuple) else [(before, after)]
        yield from ((a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int) and a != b)


@_resizes(
    "view reshape _unsafe_view expand broadcast_to zeros ones full empty new_zeros new_ones new_full"
    " new_empty rand randn"
)
def _shape(site: Site) -> dict[str, Any]:
    name = "size" if "size" in site.arguments else "shape"
    return {name: site.rewritten(site[name], site.out)}


@_resizes("unflatten")
def _unflatten(site: Site) -> dict[str, Any]:
    first = dimension(site["dim"], len(site.labels("self")))
    number = len(site["sizes"])
    return {"sizes": site.rewritten(site["sizes"], site.out[first : first + number])}


@_resizes("layer_norm rms_norm")
def _normalized(site: Site) -> dict[str, Any]:
    shape = site["normalized_shape"]
    return {"normalized_shape": site.rewritten(shape, site.out[-len(shape) :])}


def _groups(site: Site, label: Label, number: int) -> int:
    return site.sizes.size(reshape([label], [number, label.size // number])[0])


@_resizes("group_norm")
def _group_norm(site: Site) -> dict[str, Any]:
    return {"num_groups": _groups(site, site.labels("input")[1], site["num_groups"])}


@_resizes("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution")
def _convolution(site: Site) -> dict[str, Any]:
    groups = site["groups"] or 1
    if groups == 1:
        return {}
    x, weight = site.labels("input"), site.labels("weight")
    return {"groups": _groups(site, x[len(x) - len(weight) + 1], groups)}


@_resizes("slice")
def _slice(site: Site) -> dict[str, Any]:
    if (site["step"] or 1) != 1:
        return {}
    x = site.labels("self")
    label = x[dimension(site["dim"] or 0, len(x))]
    new = {}
    for name in ("start", "end"):
        index = site[name]
        if not isinstance(index, int) or index >= label.size:
            continue
        if index >= 0:
            new[name] = site.sizes.place(label, index)
        elif index + label.size > 0:
            new[name] = site.sizes.place(label, index + label.size) - site.sizes.size(label)
    return new


@_resizes("narrow")
def _narrow(site: Site) -> dict[str, Any]:
    x = site.labels("self")
    label = x[dimension(site["dim"], len(x))]
    start = site.sizes.place(label, site["start"])
    return {"start": start, "length": site.sizes.place(label, site["start"] + site["length"]) - start}


@_resizes("split chunk split_with_sizes")
def _split(site: Site) -> dict[str, Any]:
    pieces: list[Labels] = site.out
    dim = dimension(site["dim"] or 0, len(pieces[0]))
    sizes = [site.sizes.size(piece[dim]) for piece in pieces]
    if sizes == [resolve(piece[dim]).size for piece in pieces]:
        return {}
    even = len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]
    if "split_size" in site.arguments and even:
        return {"split_size": sizes[0]}
    if "chunks" in site.arguments and len(set(sizes)) == 1:
        return {}
    return {"split_sizes": sizes}


@_resizes("pad constant_pad_nd")
def _pad(site: Site) -> dict[str, Any]:
    widths = list(site["pad"])
    for j in range(len(widths) // 2):
        label = resolve(site.out[len(site.out) - 1 - j])
        if label.form != "concat":
            continue
        before, after = widths[2 * j], widths[2 * j + 1]
        widths[2 * j] = site.sizes.place(label, before)
        if after:
            end = site.sizes.place(label, label.size - after)
            widths[2 * j + 1] = site.sizes.size(label) - end
    return {"pad": widths}


@_resizes("repeat")
def _repeat(site: Site) -> dict[str, Any]:
    x = padded(site.labels("self"), len(site.out))
    times = [
        site.sizes.size(label) // site.sizes.size(old) if isinstance(number, int) and number > 1 else number
        for number, label, old in zip(site["repeats"], site.out, x, strict=True)
    ]
    return {"repeats": times}


@_resizes("repeat_interleave")
def _repeat_interleave(site: Site) -> dict[str, Any]:
    if not isinstance(site["repeats"], int):
        return {}
    dim = dimension(site["dim"], len(site.out))
    return {"repeats": site.sizes.size(site.out[dim]) // site.sizes.size(site.labels("self")[dim])}
