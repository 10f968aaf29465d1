"""The permutation proof catches maps that are wrong."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from zoo import ROWS

from msfusion.capture import TOLERANCE, capture, permutation_errors
from msfusion.core.axes import AxisInfo, AxisMap, Concat, axes_of, parse

Edit = Callable[[AxisMap], AxisMap]


def declared(pattern: str, **dims: str) -> Edit:
    """Other dims for the tensors that match; ``d0`` is the first dimension."""

    def edit(axes: AxisMap) -> AxisMap:
        tensors = dict(axes.tensors)
        matching = [name for name in tensors if re.fullmatch(pattern, name)]
        assert matching
        for name in matching:
            new = list(tensors[name])
            for key, text in dims.items():
                new[int(key[1:])] = parse(text)
                assert new[int(key[1:])].size == tensors[name][int(key[1:])].size
            tensors[name] = tuple(new)
        return with_axes(replace(axes, tensors=tensors))

    return edit


def with_axes(axes: AxisMap) -> AxisMap:
    """The map with the axes that its tensors name."""
    sizes = {}
    for dims in axes.tensors.values():
        for dim in dims:
            for name in axes_of(dim):
                found = re.search(rf"(?<![\w.~]){re.escape(name)}:(\d+)", str(dim))
                assert found
                sizes[name] = int(found[1])
    return replace(axes, axes={name: AxisInfo(size) for name, size in sizes.items()})


def both(*edits: Edit) -> Edit:
    def edit(axes: AxisMap) -> AxisMap:
        for one in edits:
            axes = one(axes)
        return axes

    return edit


def swapped_segments(axes: AxisMap) -> AxisMap:
    out, joined, *space = axes.tensors["join2.0.weight"]
    assert isinstance(joined, Concat)
    turned = Concat(tuple(reversed(joined.parts)))
    return replace(axes, tensors={**axes.tensors, "join2.0.weight": (out, turned, *space)})


HEADS = "h.0.attn.c_attn.out"
QUERIES = "blocks.0.attention.q.out"

CASES: list[tuple[str, str, Edit]] = [
    (
        "fused qkv as one segment",
        "nanogpt",
        declared(r"h\.0\.attn\.c_attn\.(weight|bias)", d0=f"{HEADS}:4*24"),
    ),
    (
        "[q|k|v] taken for (head, 3, d)",
        "nanogpt",
        declared(r"h\.0\.attn\.c_attn\.(weight|bias)", d0=f"{HEADS}:4*3*8"),
    ),
    ("qkv bias forgotten", "nanogpt", declared(r"h\.0\.attn\.c_attn\.bias", d0="96")),
    ("one layer norm bias forgotten", "nanogpt", declared(r"h\.1\.ln_2\.bias", d0="32")),
    (
        "columns (d, head) for (head, d)",
        "nanogpt",
        declared(r"h\.0\.attn\.c_proj\.weight", d1=f"8*{HEADS}:4"),
    ),
    ("residual stream split in two", "nanogpt", declared(r"wpe\.weight", d1="other:32")),
    ("(3, H, D) for (H, 3, D)", "qkv (3, H, D)", declared(r"qkv\.(weight|bias)", d0="qkv.out:4*3*8")),
    ("(H, 3, D) for (3, H, D)", "qkv (H, 3, D)", declared(r"qkv\.(weight|bias)", d0="3*qkv.out:4*8")),
    ("flatten (hw, c) for (c, hw)", "flatten cnn", declared(r"fc1\.weight", d1="16*conv2.out:12")),
    (
        "a transposed convolution",
        "flatten cnn",
        declared(r"conv2\.weight", d0="12", d1="conv1.out:8", d2="3"),
    ),
    ("running variance forgotten", "padded resnet", declared(r"2\.norm1\.running_var", d0="8")),
    ("running mean forgotten", "padded resnet", declared(r"1\.running_mean", d0="8")),
    (
        "query heads (rep, kv) for (kv, rep)",
        "llama-like",
        both(
            declared(r"blocks\.0\.attention\.q\.weight", d0=f"2*{QUERIES}:2*8"),
            declared(r"blocks\.0\.attention\.o\.weight", d1=f"2*{QUERIES}:2*8"),
        ),
    ),
    (
        "rotary units permuted freely",
        "llama-like",
        both(
            declared(r"blocks\.0\.attention\.q\.weight", d0="4*free:8"),
            declared(r"blocks\.0\.attention\.k\.weight", d0="2*free:8"),
        ),
    ),
    ("rotary pairs without their frequencies", "llama-like", declared("inv_freq", d0="4")),
    ("gate and up in one segment", "llama-like", declared(r"blocks\.0\.gate_up\.weight", d0="2*other:40")),
    ("segments of a concatenation swapped", "unet", swapped_segments),
    (
        "across groups of a group norm",
        "unet",
        both(
            declared(r"down1\.[01]\.(weight|bias)", d0="free:8"),
            declared(r"down1\.3\.weight", d1="free:8"),
        ),
    ),
    (
        "across groups of a convolution",
        "resnext",
        both(declared(r"[01]\.(weight|bias|running_mean|running_var)", d0="free:16")),
    ),
    ("gates (H, 4) in one bias", "char lstm", declared(r"lstm\.bias_hh_l0", d0="lstm.weight_ih_l0.out:32*4")),
]


@pytest.mark.parametrize(("name", "edit"), [pytest.param(n, e, id=title) for title, n, e in CASES])
def test_a_wrong_map_is_caught(name: str, edit: Edit) -> None:
    row = next(row for row in ROWS if row.name == name)
    torch.manual_seed(0)
    model, inputs = row.model(), row.inputs(2)
    right = capture(model, *inputs).axes
    assert worst(permutation_errors(model, *inputs, right).values()) < row.tolerance
    assert worst(permutation_errors(model, *inputs, edit(right)).values()) > 5 * TOLERANCE


def worst(errors: Iterable[float]) -> float:
    return max(errors)
