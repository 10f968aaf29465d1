"""Other arrangements of the same elements: views, slices, concatenation, padding, repetition."""

from collections.abc import Iterator

from msfusion.capture.labels import ONE, Label, concat, is_pinned, pin, pinned, product
from msfusion.capture.rearrange import reshape, segment

from .registry import Call, Labels, Result, broadcast, dimension, dimensions, padded, replaced, rule


@rule("view reshape flatten unflatten _unsafe_view view_as reshape_as _reshape_alias", view=True)
def view(call: Call) -> Result:
    x = call["self"]
    if [label.size for label in x] == list(call.shape):
        return Labels(x)
    return Labels(reshape(x, call.shape, call.where))


@rule("view_as_complex", view=True)
def view_as_complex(call: Call) -> Result:
    """Pairs become one number; rotary positions are often written so."""
    x = call["self"]
    pin(x[-1], "real and imaginary part")
    return Labels(x[:-1])


@rule("view_as_real", view=True)
def view_as_real(call: Call) -> Result:
    return Labels([*call["self"], pinned(2, "real and imaginary part")])


@rule("squeeze unsqueeze", view=True)
def squeeze(call: Call) -> Result:
    kept = iter([label for label in call["self"] if label.size != 1])
    return Labels(ONE if size == 1 else next(kept) for size in call.shape)


@rule("permute", view=True)
def permute(call: Call) -> Result:
    return Labels(call["self"][i] for i in call["dims"])


@rule("transpose swapaxes swapdims t numpy_T mT adjoint", view=True)
def transpose(call: Call) -> Result:
    x = list(call["self"])
    if len(x) > 1:
        i = call.get("dim0", call.get("axis0", -2))
        j = call.get("dim1", call.get("axis1", -1))
        x[i], x[j] = x[j], x[i]
    return Labels(x)


@rule("movedim", view=True)
def movedim(call: Call) -> Result:
    x = call["self"]
    sources, targets = dimensions(call["source"], len(x)), dimensions(call["destination"], len(x))
    moved = dict(zip(targets, sources, strict=True))
    rest: Iterator[Label] = iter(label for i, label in enumerate(x) if i not in sources)
    return Labels(x[moved[i]] if i in moved else next(rest) for i in range(len(x)))


def _new(size: int, why: str) -> Label:
    return Label(size) if size > 1 else pinned(size, why)


@rule("expand expand_as broadcast_to", view=True)
def expand(call: Call) -> Result:
    """A dimension that is expanded holds equal elements: any axis may run through it."""
    x = padded(call["self"], len(call.shape))
    return Labels(
        label if label.size == size else _new(size, call.where)
        for label, size in zip(x, call.shape, strict=True)
    )


@rule("repeat tile", view=True)
def repeat(call: Call) -> Result:
    x = padded(call["self"], len(call.shape))
    return Labels(
        label if label.size == size else product(Label(size // label.size), label)
        for label, size in zip(x, call.shape, strict=True)
    )


@rule("repeat_interleave", view=True)
def repeat_interleave(call: Call) -> Result:
    x, times = call["self"], call.get("repeats")
    if not isinstance(times, int) or call.get("dim") is None:
        return None
    i = dimension(call["dim"], len(x))
    return Labels(x) if times == 1 else replaced(x, i, product(x[i], Label(times)))


@rule("slice", view=True)
def slice_(call: Call) -> Result:
    x, step = call["self"], call["step"]
    i = dimension(call["dim"], len(x))
    size = x[i].size
    start, stop = _bound(call["start"], 0, size), _bound(call["end"], size, size)
    if step == 1:
        return replaced(x, i, segment(x[i], start, stop))
    if size % step == 0 and start < step and stop == size:
        outer, inner = reshape([x[i]], [size // step, step], call.where)
        pin(inner, call.where)
        return replaced(x, i, outer)
    pin(x[i], call.where)
    return replaced(x, i, pinned(call.shape[i], call.where))


def _bound(index: object, default: int, size: int) -> int:
    """A slice bound as a place between 0 and ``size``."""
    if index is None:
        return default
    if not isinstance(index, int):
        index = int(getattr(getattr(index, "node", None), "hint", None) or 0)
    place = index + size if index < 0 else index
    return max(0, min(size, place))


@rule("narrow", view=True)
def narrow(call: Call) -> Result:
    x = call["self"]
    i = dimension(call["dim"], len(x))
    start = _bound(call["start"], 0, x[i].size)
    return replaced(x, i, segment(x[i], start, start + call.shape[i]))


@rule("select", view=True)
def select(call: Call) -> Result:
    x = call["self"]
    i = dimension(call["dim"], len(x))
    pin(x[i], call.where)
    return Labels([*x[:i], *x[i + 1 :]])


@rule("unbind", view=True)
def unbind(call: Call) -> Result:
    out = select(call)
    return [Labels(out or ())] * len(call.shapes)  # type: ignore[arg-type]


@rule("split chunk split_with_sizes tensor_split", view=True)
def split(call: Call) -> Result:
    x = call["self"]
    i = dimension(call.get("dim", 0), len(x))
    out: list[Labels] = []
    start = 0
    for shape in call.shapes:
        out.append(replaced(x, i, segment(x[i], start, start + shape[i])))
        start += shape[i]
    return out


@rule("cat concat")
def cat(call: Call) -> Result:
    tensors = [t for t in call["tensors"] if len(t) == len(call.shape)]
    i = dimension(call["dim"], len(call.shape))
    others = [*call.shape[:i], 1, *call.shape[i + 1 :]]
    rest = broadcast([replaced(t, i, ONE) for t in tensors], others, call.where)
    return replaced(rest, i, concat(*[t[i] for t in tensors]))


@rule("stack")
def stack(call: Call) -> Result:
    i = dimension(call["dim"], len(call.shape))
    rest = broadcast(call["tensors"], [*call.shape[:i], *call.shape[i + 1 :]], call.where)
    return Labels([*rest[:i], pinned(call.shape[i], call.where), *rest[i:]])


@rule("pad constant_pad_nd")
def pad(call: Call) -> Result:
    x = list(call["self"])
    widths = call["pad"]
    for j in range(len(widths) // 2):
        before, after = widths[2 * j], widths[2 * j + 1]
        i = len(x) - 1 - j
        if before == after == 0:
            continue
        if is_pinned(x[i]) or min(before, after) < 0 or call.get("mode", "constant") != "constant":
            pin(x[i], call.where)
            x[i] = pinned(call.shape[i], call.where)
        else:
            x[i] = concat(Label(before), x[i], Label(after))
    return Labels(x)
