"""Element by element, along one dimension, and reductions."""

from msfusion.capture.labels import ONE, mark_contracted, pin, unify
from msfusion.capture.rearrange import segment

from .registry import Call, Labels, Result, broadcast, dimension, dimensions, free, pinned_all, rule


@rule(
    "pointwise dropout feature_dropout alpha_dropout where masked_fill __and__ __or__ __xor__ bitwise_and"
    " hardswish log_sigmoid floor_divide zero bernoulli uniform normal exponential logical_not"
    " bitwise_not __rsub__ true_divide copy fill"
)
def pointwise(call: Call) -> Result:
    return broadcast(call.tensors, call.shape, call.where)


@rule("to alias contiguous clone detach lift_fresh_copy lift_fresh type_as _to_copy requires_grad", view=True)
@rule("float half bfloat16 double cpu cuda positive conj resolve_conj resolve_neg _conj", view=True)
def same(call: Call) -> Result:
    return call.tensors[0]


@rule("softmax log_softmax _softmax _log_softmax _safe_softmax")
def softmax(call: Call) -> Result:
    """Over fewer units each has a larger share: what reads them does not sum to less."""
    x = call.tensors[0]
    if x.activation and x:
        mark_contracted(x[dimension(call["dim"], len(x))])
    return x


@rule("native_dropout")
def native_dropout(call: Call) -> Result:
    return [call["input"], call["input"]]


@rule(
    "zeros ones full empty rand randn new_zeros new_ones new_full new_empty zeros_like ones_like full_like"
    " empty_like rand_like randn_like scalar_tensor"
)
def uniform(call: Call) -> Result:
    """Every element alike (or drawn alike): any axis may run through it."""
    return free(call.shape)


@rule("arange linspace eye randint randperm tril_indices triu_indices")
def constant(call: Call) -> Result:
    return call.pinned(call.shape)


_SUMS = frozenset(
    ["sum", "nansum", "prod", "logsumexp", "frobenius_norm", "linalg_vector_norm", "norm", "count_nonzero"]
)
"""Reductions that are less over fewer units, with no parameter to make up for it."""

_WITH_INDICES = ("max", "min", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin")


@rule(
    "reduction logsumexp all any prod std var std_mean var_mean frobenius_norm nansum count_nonzero"
    " linalg_vector_norm median nanmedian mode kthvalue"
)
def reduction(call: Call) -> Result:
    x = call.tensors[0]
    dims = dimensions(call.get("dim"), len(x))
    positional = call.op in ("argmax", "argmin") or (call.op in _WITH_INDICES and 1 in call.read)
    if positional:
        for i in dims:
            pin(x[i], call.where)
    if call.op in _SUMS and x.activation:
        for i in dims:
            mark_contracted(x[i])
    keep = call.get("keepdim", False)
    out = Labels(ONE if i in dims else label for i, label in enumerate(x) if keep or i not in dims)
    return [out] * len(call.shapes)


@rule("cumsum cumprod sort argsort topk roll flip logcumsumexp unfold cummax cummin")
@rule("_fft_r2c _fft_c2c _fft_c2r")
def ordered(call: Call) -> Result:
    """The order of the units along the dimension matters."""
    x = call["self"]
    named = call.get("dim", call.get("dims", call.get("dimension")))
    dims = dimensions(named, len(x))
    for i in dims:
        pin(x[i], call.where)
    kept = [None if i in dims else label for i, label in enumerate(x)]
    shape = call.shape
    kept += [None] * (len(shape) - len(kept))
    pins = pinned_all(shape, call.where)
    out = Labels(label if label is not None else p for label, p in zip(kept, pins, strict=True))
    return [out] * len(call.shapes)


@rule("tril triu")
def triangle(call: Call) -> Result:
    for label in call["self"][-2:]:
        pin(label, call.where)
    return Labels(call["self"])


@rule("glu")
def glu(call: Call) -> Result:
    x = call["self"]
    i = dimension(call["dim"], len(x))
    half = call.shape[i]
    value, gate = segment(x[i], 0, half), segment(x[i], half, 2 * half)
    unify(value, gate, call.where)
    return Labels([*x[:i], value, *x[i + 1 :]])
