"""Labels of slices and of row-major views."""

from collections.abc import Iterable, Sequence

from .labels import Label, factors, pin, pinned, product, resolve, split_first, split_outer


def segment(label: Label, start: int, stop: int) -> Label:
    """Label of ``x[start:stop]``."""
    label = resolve(label)
    if start == 0 and stop == label.size:
        return label
    if stop <= start:
        return pinned(0, "empty")
    part = label
    if stop < label.size:
        parts = split_first(part, stop)
        if parts is None:
            return _inside_block(label, start, stop)
        part = parts[0]
    if start > 0:
        parts = split_first(part, start)
        if parts is None:
            return _inside_block(label, start, stop)
        part = parts[1]
    return part


def _inside_block(label: Label, start: int, stop: int) -> Label:
    reason = f"slice [{start}:{stop}] ends inside a block"
    pin(label, reason)
    return pinned(stop - start, reason)


def reshape(labels: Iterable[Label], sizes: Sequence[int], why: str = "view") -> list[Label]:
    """Labels after a row-major view: exact integer algebra on the factors; what does not fit is pinned."""
    rest = [factor for label in labels for factor in factors(label)]
    out: list[Label] = []
    for i, size in enumerate(sizes):
        taken = _take_factors(rest, size)
        if taken is None:
            for label in rest:
                pin(label, f"{why}: dimensions that do not factor into {list(sizes)}")
            return out + [pinned(s, why) for s in sizes[i:]]
        out.append(product(*taken[0]))
        rest = taken[1]
    return out


def _take_factors(rest: list[Label], size: int) -> tuple[list[Label], list[Label]] | None:
    """Leading factors of total ``size`` and what remains; None where no boundary can lie there."""
    taken: list[Label] = []
    while size > 1:
        rest = _flat_head(rest, size)
        head = rest[0]
        if size % head.size == 0:
            taken.append(head)
            rest = rest[1:]
            size //= head.size
            continue
        parts = split_outer(head, size)
        if parts is None:
            return None
        taken.append(parts[0])
        return taken, [parts[1], *rest[1:]]
    return taken, rest


def _flat_head(rest: list[Label], size: int) -> list[Label]:
    """The same factors, the first not a product, and pinned ones merged until they divide ``size``."""
    rest = factors(rest[0]) + rest[1:]
    while len(rest) > 1 and size % rest[0].size and rest[0].size % size:
        first, *more = factors(rest[1])
        head = rest[0]
        if not (head.form == first.form == "leaf" and head.reason and first.reason):
            break
        rest = [pinned(head.size * first.size, head.reason), *more, *rest[2:]]
    return rest
