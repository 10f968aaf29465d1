"""Normalisation layers and per-channel parameters."""

from msfusion.capture.labels import unify
from msfusion.capture.rearrange import reshape

from .registry import Call, Labels, Result, rule


@rule("batch_norm instance_norm")
def batch_norm(call: Call) -> Result:
    x = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name) is not None:
            unify(call[name][0], x[1], call.where)
    return Labels(x)


@rule("layer_norm rms_norm")
def layer_norm(call: Call) -> Result:
    x = call["input"]
    for parameter in (call["weight"], call.get("bias")):
        if parameter is not None:
            for label, other in zip(parameter, x[-len(parameter) :], strict=True):
                unify(label, other, call.where)
    return Labels(x)


@rule("group_norm")
def group_norm(call: Call) -> Result:
    x, groups = call["input"], call["num_groups"]
    for parameter in (call["weight"], call["bias"]):
        if parameter is not None:
            unify(parameter[0], x[1], call.where)
    reshape([x[1]], [groups, x[1].size // groups], call.where)
    return Labels(x)


@rule("prelu")
def prelu(call: Call) -> Result:
    x, weight = call["self"], call["weight"]
    if len(weight) and weight[0].size > 1:
        unify(weight[0], x[1], call.where)
    return Labels(x)
