"""Convolution, pooling and resampling: channels run through, space is pinned."""

from msfusion.capture.labels import product, unify
from msfusion.capture.rearrange import reshape

from .registry import Call, Labels, Result, pin_all, pinned_all, rule


@rule("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution")
def convolution(call: Call) -> Result:
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    transposed = "transpose" in call.op or call.get("transposed", False)
    channel = len(x) - len(weight) + 1
    pin_all([*x[channel + 1 :], *weight[2:]], "spatial")
    group_x, in_x = reshape([x[channel]], [groups, x[channel].size // groups], call.where)
    group_w, in_w = reshape([weight[0]], [groups, weight[0].size // groups], call.where)
    unify(group_x, group_w, call.where)
    summed = weight[1] if not transposed else weight[0] if groups == 1 else in_w
    unify(in_x, summed, call.where)
    call.sums(weight, summed)
    out = product(group_w, weight[1]) if transposed else weight[0]
    if bias is not None:
        unify(bias[0], out, call.where)
    return Labels([*x[:channel], out, *pinned_all(call.shape[channel + 1 :], "spatial")])


@rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d"
    " adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d"
    " adaptive_max_pool3d lp_pool2d fractional_max_pool2d max_pool2d_with_indices"
    " upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d"
    " upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa reflection_pad1d reflection_pad2d"
    " replication_pad1d replication_pad2d"
)
def spatial(call: Call) -> Result:
    x = call.tensors[0]
    number = next((int(c) for c in call.op if c in "123"), 2)
    first = len(call.shape) - number
    pin_all(x[first:], "spatial")
    out = Labels([*x[:first], *pinned_all(call.shape[first:], "spatial")])
    return [out] * len(call.shapes)


@rule("grid_sampler grid_sampler_2d grid_sampler_3d")
def grid_sampler(call: Call) -> Result:
    """Pixels of the input at places that the grid names by its coordinates."""
    x, grid = call["input"], call["grid"]
    pin_all([*x[2:], *grid[1:]], "spatial")
    unify(x[0], grid[0], call.where)
    return Labels([*x[:2], *pinned_all(call.shape[2:], "spatial")])
