"""The label algebra: small examples by hand, then the law that makes it sound."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msfusion.capture.labels import (
    ONE,
    Label,
    concat,
    factors,
    is_pinned,
    leaves,
    pin,
    pinned,
    product,
    resolve,
    segments,
    split_first,
    split_outer,
    unify,
)
from msfusion.capture.rearrange import reshape, segment


def sizes(labels: list[Label]) -> list[int]:
    return [label.size for label in labels]


def test_a_view_of_a_leaf_makes_it_a_product() -> None:
    embed = Label(12)
    heads, inner = reshape([embed], [3, 4])
    assert sizes(factors(embed)) == [3, 4]
    assert factors(embed) == [heads, inner]


def test_a_view_back_gives_the_same_leaves() -> None:
    heads, inner = Label(3), Label(4)
    (flat,) = reshape([heads, inner], [12])
    assert factors(flat) == [heads, inner]
    assert reshape([flat], [3, 4]) == [heads, inner]


def test_a_view_across_a_boundary_pins_what_it_tears() -> None:
    a, b = Label(4), Label(6)
    reshape([a, b], [3, 8])
    assert is_pinned(a)
    assert is_pinned(b)


def test_a_view_keeps_what_lies_before_the_torn_part() -> None:
    a, b, c = Label(5), Label(4), Label(6)
    out = reshape([a, b, c], [5, 3, 8])
    assert out[0] is a
    assert not is_pinned(a)
    assert is_pinned(b)
    assert is_pinned(c)


def test_size_one_has_no_factors() -> None:
    assert reshape([Label(4), ONE], [1, 4, 1])[0] is ONE
    assert factors(ONE) == []


def test_equal_segments_of_a_leaf_by_slices() -> None:
    qkv = Label(12)
    q, k, v = (segment(qkv, i, i + 4) for i in (0, 4, 8))
    assert segments(qkv) == [q, k, v]
    heads = reshape([q], [2, 2])[0]
    unify(q, k)
    unify(k, v)
    assert resolve(factors(v)[0]) is heads


def test_a_slice_inside_a_unit_pins() -> None:
    label = product(Label(3), Label(4))
    segment(label, 2, 7)
    assert is_pinned(label)


def test_a_slice_of_a_product_counts_its_outer_factor() -> None:
    outer, inner = Label(3), Label(4)
    part = segment(product(outer, inner), 4, 12)
    assert is_pinned(outer)
    assert not is_pinned(inner)
    assert [f.size for f in factors(part)] == [2, 4]


def test_products_are_equated_factor_by_factor() -> None:
    a, b = product(Label(2), Label(6)), product(Label(4), Label(3))
    unify(a, b)
    assert sizes(factors(a)) == sizes(factors(b)) == [2, 2, 3]
    assert [resolve(f) for f in factors(a)] == [resolve(f) for f in factors(b)]


def test_products_without_common_factors_are_pinned() -> None:
    a, b = product(Label(2), Label(3)), product(Label(3), Label(2))
    unify(a, b)
    assert is_pinned(a)
    assert is_pinned(b)


def test_concatenations_are_equated_boundary_by_boundary() -> None:
    a, b = concat(Label(2), Label(6)), concat(Label(5), Label(3))
    unify(a, b)
    assert sizes(segments(a)) == sizes(segments(b)) == [2, 3, 3]


def test_a_counter_times_heads_equals_three_segments_of_heads() -> None:
    heads = Label(4)
    viewed = product(Label(3), heads)
    parts = [Label(4) for _ in range(3)]
    unify(viewed, concat(*parts))
    assert {resolve(part) for part in parts} == {resolve(heads)}
    assert not is_pinned(heads)
    assert is_pinned(factors(viewed)[0])


def test_unify_carries_pins_both_ways() -> None:
    a, b = pinned(4, "input"), Label(4)
    unify(b, a)
    assert is_pinned(b)
    c = product(Label(2), Label(2))
    unify(c, a)
    assert is_pinned(c)


def test_unify_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="equal size"):
        unify(Label(3), Label(4))


def test_split_where_no_boundary_can_lie() -> None:
    assert split_outer(Label(12), 5) is None
    assert split_first(product(Label(3), Label(4)), 6) is None


def test_the_first_reason_stays() -> None:
    label = Label(3)
    pin(label, "first")
    pin(label, "second")
    assert resolve(label).reason == "first"


# The law: if the units of every free leaf are permuted in a tensor as its labels say, then an operation on
# it gives the same result as on the original, with units permuted as the labels of the result say.


def order_of(label: Label, permutations: dict[Label, Tensor]) -> Tensor:
    """Index of a dimension when every free leaf is permuted."""
    label = resolve(label)
    if label.form == "leaf":
        if label.reason or label.size == 1:
            return torch.arange(label.size)
        torch.manual_seed(label.size)
        return permutations.setdefault(label, torch.randperm(label.size))
    if label.form == "product":
        index = torch.zeros(1, dtype=torch.long)
        for part in label.parts:
            index = (index[:, None] * part.size + order_of(part, permutations)).flatten()
        return index
    offsets = [sum(p.size for p in label.parts[:i]) for i in range(len(label.parts))]
    parts = [order_of(p, permutations) + o for p, o in zip(label.parts, offsets, strict=True)]
    return torch.cat(parts)


def permuted(tensor: Tensor, labels: list[Label], permutations: dict[Label, Tensor]) -> Tensor:
    for i, label in enumerate(labels):
        tensor = tensor.index_select(i, order_of(label, permutations))
    return tensor


Step = tuple[Callable[[Tensor], Tensor], Callable[[list[Label]], list[Label]]]


def factorisations(draw: st.DrawFn, total: int) -> list[int]:
    out = []
    while total > 1:
        size = draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0]))
        out.append(size)
        total //= size
    return out or [1]


def view_step(draw: st.DrawFn, labels: list[Label]) -> Step:
    shape = factorisations(draw, math.prod(sizes(labels)))
    return lambda t: t.reshape(shape), lambda ls: reshape(ls, shape)


def slice_step(draw: st.DrawFn, labels: list[Label]) -> Step:
    i = draw(st.integers(0, len(labels) - 1))
    start = draw(st.integers(0, labels[i].size - 1))
    stop = draw(st.integers(start + 1, labels[i].size))
    return (
        lambda t: t.narrow(i, start, stop - start),
        lambda ls: [*ls[:i], segment(ls[i], start, stop), *ls[i + 1 :]],
    )


def transpose_step(draw: st.DrawFn, labels: list[Label]) -> Step:
    order = draw(st.permutations(range(len(labels))))
    return lambda t: t.permute(order), lambda ls: [ls[i] for i in order]


def fold_step(draw: st.DrawFn, labels: list[Label]) -> Step:
    """Add the second half of a dimension to the first: equates two segments."""
    even = [i for i, label in enumerate(labels) if label.size % 2 == 0]
    if not even:
        return transpose_step(draw, labels)
    i = draw(st.sampled_from(even))
    half = labels[i].size // 2

    def on_labels(ls: list[Label]) -> list[Label]:
        first, second = segment(ls[i], 0, half), segment(ls[i], half, 2 * half)
        unify(first, second)
        return [*ls[:i], first, *ls[i + 1 :]]

    return lambda t: t.narrow(i, 0, half) + 1.5 * t.narrow(i, half, half), on_labels


def join_step(draw: st.DrawFn, labels: list[Label]) -> Step:
    i = draw(st.integers(0, len(labels) - 1))
    return (
        lambda t: torch.cat([t, 2.5 * t], i),
        lambda ls: [*ls[:i], concat(ls[i], ls[i]), *ls[i + 1 :]],
    )


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[int], list[Label], list[Step], list[Label]]:
    shape = draw(st.lists(st.sampled_from([2, 3, 4, 6, 8, 12]), min_size=1, max_size=3))
    first = [Label(size) for size in shape]
    labels, steps = first, []
    for _ in range(draw(st.integers(1, 5))):
        make = draw(st.sampled_from([view_step, slice_step, transpose_step, fold_step, join_step]))
        step = make(draw, labels)
        steps.append(step)
        labels = step[1](labels)
    return shape, first, steps, labels


@settings(max_examples=300, deadline=None)
@given(programs())
def test_permuting_before_equals_permuting_after(
    program: tuple[list[int], list[Label], list[Step], list[Label]],
) -> None:
    shape, first, steps, last = program
    before = torch.arange(math.prod(shape), dtype=torch.float64).sqrt().reshape(shape)
    after = before
    permutations: dict[Label, Tensor] = {}
    shuffled = permuted(before, first, permutations)
    for on_tensor, _ in steps:
        after, shuffled = on_tensor(after), on_tensor(shuffled)
    assert list(after.shape) == sizes(last)
    torch.testing.assert_close(shuffled, permuted(after, last, permutations), rtol=0, atol=0)


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))
def test_views_of_leaves_lose_nothing(shape: list[int]) -> None:
    labels = [Label(size) if size > 1 else ONE for size in shape]
    (flat,) = reshape(labels, [math.prod(shape)])
    assert [leaf for leaf in leaves(flat) if leaf.size > 1] == [x for x in labels if x.size > 1]
