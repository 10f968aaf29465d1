"""What operations cost that ``FlopCounterMode`` does not know, or counts as others do than it says."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = Sequence[int]


def counter() -> FlopCounterMode:
    """Counts, while it is entered, matrix products, convolutions and attention, a multiply-add being two."""
    return FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


def _convolution_backward(
    grad: Shape,
    inputs: Shape,
    weight: Shape,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    """The gradients of input and weight, each as much as the forward pass; torch 2.13 counts that of a weight
    as if all channels met all others, whatever the groups."""
    places = (inputs if transposed else grad)[2:]
    return 2 * inputs[0] * prod(places) * prod(weight) * sum(map(bool, output_mask[:2]))


def _vector_product(first: Shape, second: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(first)


def _added_vector_product(added: Any, matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _added_products(added: Any, first: Shape, second: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(first) * second[-1]


def _trilinear(a: Shape, b: Shape, c: Shape, *args: Any, **kwargs: Any) -> int:
    """``nn.Bilinear``, forward or backward: a sum of products of three, expanded against each other."""
    full = [_expanded(shape, dims) for shape, dims in zip((a, b, c), args[:3], strict=True)]
    sizes: list[int] = [max(each) for each in zip(*full, strict=True)]
    return 2 * prod(sizes)


def _expanded(shape: Shape, dims: Sequence[int]) -> list[int]:
    out = list(shape)
    for dim in sorted(dims):
        out.insert(dim, 1)
    return out


_FORMULAS: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten.mv: _vector_product,
    torch.ops.aten.dot: _vector_product,
    torch.ops.aten.vdot: _vector_product,
    torch.ops.aten.addmv: _added_vector_product,
    torch.ops.aten.addbmm: _added_products,
    torch.ops.aten._trilinear: _trilinear,
}
