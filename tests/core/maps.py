"""Maps, random cases and brute force that the tests of the core share.

The brute force never looks at runs: it names, for every single index of a dimension, the units that it
stands for, in nested loops.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from msfusion.core.axes import (
    Axis,
    AxisInfo,
    AxisMap,
    Concat,
    Dim,
    Fixed,
    Product,
    Selection,
    Units,
    axes_of,
    parse,
    runs_of,
)

Label = tuple[tuple[str, int], ...]
"""The units that one index stands for, as (axis, unit)."""


def labels(dim: Dim) -> list[Label]:
    """The label of every index of a dim."""
    if isinstance(dim, Fixed):
        return [() for _ in range(dim.size)]
    if isinstance(dim, Axis):
        return [((dim.name, unit),) for unit in range(dim.size)]
    if isinstance(dim, Concat):
        return [label for part in dim.parts for label in labels(part)]
    out: list[Label] = [()]
    for factor in dim.factors:
        out = [head + tail for head in out for tail in labels(factor)]
    return out


def members(units: Units) -> set[int]:
    return {unit for start, stop in units for unit in range(start, stop)}


def kept(dim: Dim, selection: Selection) -> list[int]:
    """Indices that a selection keeps."""
    chosen = {axis: members(units) for axis, units in selection.items()}
    return [
        index
        for index, label in enumerate(labels(dim))
        if all(unit in chosen[axis] for axis, unit in label if axis in chosen)
    ]


def mask(dims: Sequence[Dim], selection: Selection) -> np.ndarray:
    """True at the entries of a full tensor that a selection keeps."""
    out = np.zeros([dim.size for dim in dims], dtype=bool)
    for index in product(*(kept(dim, selection) for dim in dims)):
        out[index] = True
    return out


def make_map(
    tensors: Mapping[str, Sequence[str]], residual: Sequence[str] = (), whole: Mapping[str, str] | None = None
) -> AxisMap:
    """A map from the text forms of its dims; the sizes of the axes are read off them."""
    dims = {name: tuple(map(parse, texts)) for name, texts in tensors.items()}
    sizes = {a.name: a.size for d in dims.values() for dim in d for a in _leaves(dim)}
    reasons = whole or {}
    return AxisMap(dims, {a: AxisInfo(n, a in residual, reasons.get(a)) for a, n in sizes.items()})


def _leaves(dim: Dim) -> list[Axis]:
    match dim:
        case Axis():
            return [dim]
        case Product(factors=inner) | Concat(parts=inner):
            return [leaf for part in inner for leaf in _leaves(part)]
        case _:
            return []


def resnet18() -> AxisMap:
    """Parameters of ResNet-18 for 32x32 images and ten classes: every axis may be cut."""
    tensors: dict[str, list[str]] = {}

    def conv(name: str, out: str, into: str, kernel: int) -> None:
        tensors[f"{name}.weight"] = [out, into, str(kernel), str(kernel)]
        tensors[f"{name}.norm.weight"] = tensors[f"{name}.norm.bias"] = [out]

    stages = (64, 128, 256, 512)
    streams = [f"stream{s}:{size}" for s, size in enumerate(stages)]
    conv("stem", streams[0], "3", 3)
    for s, size in enumerate(stages):
        for block in range(2):
            enters = streams[max(s - 1, 0)] if block == 0 else streams[s]
            inner = f"inner{s}.{block}:{size}"
            conv(f"{s}.{block}.first", inner, enters, 3)
            conv(f"{s}.{block}.second", streams[s], inner, 3)
            if enters != streams[s]:
                conv(f"{s}.{block}.shortcut", streams[s], enters, 1)
    tensors |= {"head.weight": ["10", streams[-1]], "head.bias": ["10"]}
    return make_map(tensors, residual=[stream.split(":")[0] for stream in streams])


AXES = {"a": 5, "b": 4, "c.x": 3, "d": 1}
"""Axes of the random cases."""

leaves = st.one_of(
    st.integers(1, 3).map(Fixed), st.sampled_from(sorted(AXES)).map(lambda name: Axis(name, AXES[name]))
)
dims = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Product(tuple(parts))),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Concat(tuple(parts))),
    ),
    max_leaves=4,
).filter(lambda dim: dim.size <= 40)


def windows_of(size: int) -> st.SearchStrategy[Units]:
    """Cyclic windows of an axis: every start, every length."""
    return st.builds(
        lambda start, length: runs_of((start + i) % size for i in range(length)),
        st.integers(0, size - 1),
        st.integers(1, size),
    )


def scattered(size: int) -> st.SearchStrategy[Units]:
    """Any units of an axis, at least one."""
    return st.sets(st.integers(0, size - 1), min_size=1).map(runs_of)


selections = st.fixed_dictionaries(
    {}, optional={axis: st.one_of(windows_of(size), scattered(size)) for axis, size in AXES.items()}
)


@st.composite
def tensor_dims(draw: st.DrawFn) -> tuple[Dim, ...]:
    """Dims of one tensor of at most 600 entries, of any number of dimensions."""
    out: list[Dim] = []
    for dim in draw(st.lists(dims, max_size=3)):
        if np.prod([d.size for d in [*out, dim]]) <= 600:
            out.append(dim)
    return tuple(out)


@st.composite
def maps(draw: st.DrawFn) -> AxisMap:
    """A map of one to three tensors."""
    tensors = {f"t{i}": draw(tensor_dims()) for i in range(draw(st.integers(1, 3)))}
    used = {axis for d in tensors.values() for dim in d for axis in axes_of(dim)}
    infos = {
        axis: AxisInfo(AXES[axis], draw(st.booleans()), draw(st.sampled_from([None, "it is the input"])))
        for axis in sorted(used)
    }
    return AxisMap(tensors, infos)


def randoms(axes: AxisMap, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Full tensors with values of their own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn([dim.size for dim in dims], generator=generator, dtype=torch.float64).to(dtype)
        for name, dims in axes.tensors.items()
    }
