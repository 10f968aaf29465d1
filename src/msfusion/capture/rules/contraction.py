"""Sums of products: linear layers, matrix products, einsum, attention."""

from collections.abc import Sequence

from msfusion.capture.labels import ONE, Label, mark_contracted, pin, unify
from msfusion.capture.rearrange import reshape

from .registry import Call, Labels, Result, broadcast, rule


def weighted_sum(call: Call, *terms: tuple[Labels, Label]) -> None:
    """Record a sum of products over a dimension of each of these tensors. The first of them that is a
    parameter takes up the factor of the scale rule; where none is, but one is computed from parameters alone,
    the product itself does, and where none is either the dimension is not cut unless named."""
    weight = next((term for term in terms if term[0].origin is not None), None)
    computed = [term for term in terms if not term[0].activation]
    if weight is None and len(computed) == 1 < len(terms):
        weight = computed[0]
    if weight is None:
        mark_contracted(terms[0][1])
    else:
        call.sums(*weight)


def contract(call: Call, x: Labels, y: Labels) -> Labels:
    """Matrix product on labels: the last dimension of ``x`` with the last but one of ``y``."""
    inner = y[-2] if len(y) > 1 else y[0]
    unify(x[-1], inner, call.where)
    weighted_sum(call, (x, x[-1]), (y, inner))
    if len(x) == 1:
        return Labels([*y[:-2], y[-1]] if len(y) > 1 else [])
    if len(y) == 1:
        return Labels(x[:-1])
    return Labels([*_batch(call, x[:-2], y[:-2]), x[-2], y[-1]])


def _batch(call: Call, *tensors: Sequence[Label]) -> Labels:
    """Leading dimensions, broadcast against each other."""
    ndim = max(map(len, tensors))
    shape = [max(t[i - ndim].size for t in tensors if len(t) >= ndim - i) for i in range(ndim)]
    return broadcast(tensors, shape, call.where)


@rule("matmul mm bmm mv dot inner")
def matmul(call: Call) -> Result:
    x, y = call.tensors[:2]
    return contract(call, x, y)


@rule("addmm baddbmm addbmm addmv")
def addmm(call: Call) -> Result:
    bias, x, y = call.tensors[:3]
    return broadcast([contract(call, x, y), bias], call.shape, call.where)


@rule("linear")
def linear(call: Call) -> Result:
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    unify(x[-1], weight[-1], call.where)
    weighted_sum(call, (weight, weight[-1]), (x, x[-1]))
    if len(weight) == 1:
        return Labels(x[:-1])
    if bias is not None:
        unify(bias[0], weight[0], call.where)
    return Labels([*x[:-1], weight[0]])


@rule("bilinear")
def bilinear(call: Call) -> Result:
    first, second, weight = call["input1"], call["input2"], call["weight"]
    for i, x in ((1, first), (2, second)):
        unify(x[-1], weight[i], call.where)
        weighted_sum(call, (weight, weight[i]), (x, x[-1]))
    if call.get("bias") is not None:
        unify(call["bias"][0], weight[0], call.where)
    return Labels([*first[:-1], weight[0]])


@rule("einsum")
def einsum(call: Call) -> Result:
    terms, out = _parse_einsum(call["equation"], call["tensors"])
    met: dict[str, Label] = {}
    for term, tensor in zip(terms, call["tensors"], strict=True):
        for letter, label in zip(term, tensor, strict=True):
            if label.size == 1:
                met.setdefault(letter, ONE)
                continue
            if met.setdefault(letter, label).size == 1:
                met[letter] = label
            unify(met[letter], label, call.where)
    for letter in (letter for letter in met if letter not in out):
        having = [(t, labels) for t, labels in zip(terms, call["tensors"], strict=True) if letter in t]
        own = [(labels, labels[t.index(letter)]) for t, labels in having]
        weighted_sum(call, *(term for term in own if term[1].size == met[letter].size))
    return Labels(met[letter] for letter in out)


def _parse_einsum(equation: str, tensors: Sequence[Labels]) -> tuple[list[str], str]:
    """Letters per tensor and of the output; an ellipsis becomes letters outside the alphabet."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(set(left) - {",", "."})
        out = ("..." if "..." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    hidden = [len(x) - len(t.replace("...", "")) for t, x in zip(terms, tensors, strict=True) if "..." in t]
    most = max(hidden, default=0)
    extra = "".join(chr(0x100 + i) for i in range(most))
    spelled = [
        t.replace("...", extra[most - (len(x) - len(t) + 3) :]) for t, x in zip(terms, tensors, strict=True)
    ]
    return spelled, out.replace("...", extra)


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Result:
    query, key, value = call["query"], call["key"], call["value"]
    unify(query[-1], key[-1], call.where)
    unify(key[-2], value[-2], call.where)
    mark_contracted(query[-1])
    if call.get("enable_gqa", False) and query[-3].size != key[-3].size:
        groups = [key[-3].size, query[-3].size // key[-3].size]
        heads = reshape([query[-3]], groups, call.where)[0]
        unify(heads, key[-3], call.where)
        unify(heads, value[-3], call.where)
        batch = Labels([*_batch(call, query[:-3], key[:-3], value[:-3]), query[-3]])
    else:
        batch = _batch(call, query[:-2], key[:-2], value[:-2])
    if call.get("attn_mask") is not None:
        scores = [*batch, query[-2], key[-2]]
        broadcast([call["attn_mask"], scores], [x.size for x in scores], call.where)
    return Labels([*batch, query[-2], value[-1]])


@rule("grouped_mm_fallback _grouped_mm")
def grouped_mm(call: Call) -> Result:
    """Mixture of experts in transformers: rows sorted by expert, one matrix per expert."""
    x, weight = call.tensors[:2]
    pin(weight[0], "experts")
    pin(x[0], call.where)
    unify(x[-1], weight[1], call.where)
    weighted_sum(call, (weight, weight[1]))
    return Labels([x[0], weight[2]])
