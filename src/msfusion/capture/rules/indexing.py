"""Look-ups: an indexed dimension has an order that the indices refer to, so it is pinned."""

import torch

from msfusion.capture.labels import pin, unify

from .registry import Call, Labels, Result, broadcast, dimension, rule


@rule("embedding")
def embedding(call: Call) -> Result:
    pin(call["weight"][0], f"index of {call.where}")
    return Labels([*call["indices"], call["weight"][1]])


@rule("embedding_bag _embedding_bag _embedding_bag_forward_only")
def embedding_bag(call: Call) -> Result:
    """The bags, and what the backward pass needs: where each entry goes, and which one is the greatest."""
    weight = call["weight"]
    if call.get("per_sample_weights") is not None:
        return None
    pin(weight[0], f"index of {call.where}")
    return [
        Labels([*call.pinned(shape[:1]), weight[1]]) if len(shape) == 2 else call.pinned(shape)
        for shape in call.shapes
    ]


@rule("index")
def index(call: Call) -> Result:
    x, indices = call["self"], list(call["indices"])
    indices += [None] * (len(x) - len(indices))
    used = [i for i, at in enumerate(indices) if at is not None]
    raw = [t for t in call.raw["indices"] if t is not None]
    if len(indices) != len(x) or any(t.dtype is torch.bool for t in raw):
        return None
    for i in used:
        pin(x[i], call.where)
    number = max(len(indices[i]) for i in used)
    adjacent = used == list(range(used[0], used[-1] + 1))
    first = used[0] if adjacent else 0
    inner = broadcast([indices[i] for i in used], call.shape[first : first + number], call.where)
    rest = [label for i, label in enumerate(x) if i not in used]
    return Labels([*rest[:first], *inner, *rest[first:]])


@rule("index_select")
def index_select(call: Call) -> Result:
    x = call["self"]
    i = dimension(call["dim"], len(x))
    pin(x[i], call.where)
    return Labels([*x[:i], call["index"][0], *x[i + 1 :]])


@rule("gather take_along_dim")
def gather(call: Call) -> Result:
    x, at = call["self"], call["index"]
    dim = dimension(call["dim"], len(x))
    pin(x[dim], call.where)
    for i, (label, other) in enumerate(zip(x, at, strict=True)):
        if i == dim:
            continue
        if label.size == other.size:
            unify(label, other, call.where)
        else:
            pin(label, call.where)
            pin(other, call.where)
    return Labels(at)


@rule("index_add index_copy")
def index_add(call: Call) -> Result:
    x, source = call["self"], call["source"]
    dim = dimension(call["dim"], len(x))
    for i, (label, other) in enumerate(zip(x, source, strict=True)):
        if i == dim:
            pin(label, call.where)
            pin(other, call.where)
        else:
            unify(label, other, call.where)
    return Labels(x)


@rule("index_put")
def index_put(call: Call) -> Result:
    """Indices (or a mask) of adjacent dimensions; the values have the dimensions behind them last, and those
    before them first unless they broadcast."""
    x, values, indices = call["self"], call["values"], list(call["indices"])
    first = next(i for i, at in enumerate(indices) if at is not None)
    if any(at is None for at in indices[first:]):
        return None
    raw = [t for t in call.raw["indices"] if t is not None]
    width = sum(t.ndim if t.dtype is torch.bool else 1 for t in raw)
    before, rest = x[:first], x[first + width :]
    if first and len(values) != first + len(rest) + max(map(len, indices[first:])):
        return None
    for label in (*x[first : first + width], *(label for at in indices[first:] for label in at)):
        pin(label, call.where)
    for label in values[first : max(first, len(values) - len(rest))]:
        pin(label, call.where)
    trailing = values[max(first, len(values) - len(rest)) :]
    for kept, given in ((before, values[:first]), (rest, trailing)):
        broadcast([kept, given], [label.size for label in kept], call.where)
    return Labels(x)
