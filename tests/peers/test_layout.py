"""Shards cover the model, and windows of them are windows of the model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msfusion.core.axes import Axis, AxisInfo, AxisMap, Concat, Fixed, Product, Selection
from msfusion.core.merge import Contribution, Merge, extract
from msfusion.core.twins import Twins
from msfusion.learn.shards import Spec
from msfusion.peers.layout import Layout, rows_of
from msfusion.peers.strip import CHUNK, Strip

A, B = Axis("a", 8), Axis("b", 6)
AXES = AxisMap(
    {
        "first": (A, Fixed(3)),
        "both": (B, A),
        "heads": (Product((B, Fixed(2))), A),
        "joined": (Concat((A, B)),),
        "scale": (),
        "head": (Fixed(5), B),
    },
    {"a": AxisInfo(8), "b": AxisInfo(6)},
)
VALUES = {
    name: torch.randn(AXES.shape(name, {}), generator=torch.Generator().manual_seed(i))
    for i, name in enumerate(AXES.tensors)
}
SPECS = {name: Spec.of(value) for name, value in VALUES.items()}
WINDOWS: list[Selection] = [
    {"a": ((1, 4),), "b": ((0, 3),)},
    {"a": ((0, 2), (6, 8)), "b": ((4, 6),)},
    {},
]


TWINS = Twins(AXES, {"a": 4, "b": 2}, 0.7)  # 8 units of "a" of 4 kinds, 6 of "b" of 2
ODD = Twins(AXES, {"a": 3, "b": 4}, 0.7)  # kinds of 3 and of 2 units, and of 2 and of 1
STREAM = Twins(
    AxisMap(AXES.tensors, {"a": AxisInfo(8, residual=True), "b": AxisInfo(6)}), {"a": 4, "b": 2}, 0.7
)
EACH = pytest.mark.parametrize("twins", [None, TWINS, ODD, STREAM], ids=["none", "even", "odd", "stream"])


def cut(layout: Layout, shard: int) -> dict[str, torch.Tensor]:
    return {
        piece.name: VALUES[piece.tensor][piece.start : piece.stop].clone()
        if VALUES[piece.tensor].ndim
        else VALUES[piece.tensor].reshape(1).clone()
        for piece in layout.shards[shard]
    }


@EACH
@given(st.integers(1, 60))
def test_every_row_lies_in_one_shard(twins: Twins | None, shards: int) -> None:
    layout = Layout(AXES, SPECS, shards, twins=twins)
    assert len(layout) <= shards
    for name, spec in SPECS.items():
        every = [piece for pieces in layout.shards for piece in pieces if piece.tensor == name]
        own = sorted(every, key=lambda piece: piece.start)
        assert [piece.start for piece in own] == [0, *(piece.stop for piece in own[:-1])]
        assert own[-1].stop == (spec.shape[0] if spec.shape else 1)


@EACH
@given(st.integers(1, 60))
def test_twins_lie_in_one_shard(twins: Twins | None, shards: int) -> None:
    layout = Layout(AXES, SPECS, shards, twins=twins)
    for name in SPECS:
        kinds = twins.of_rows(name) if twins else None
        if kinds is not None:
            of = [
                {int(kind) for p in pieces if p.tensor == name for kind in kinds[p.start : p.stop]}
                for pieces in layout.shards
            ]
            assert sum(map(len, of)) == len(set(kinds.tolist()))
    if twins is None:
        assert all(len(share.pieces) == 1 for n in range(len(layout)) for share in layout.shares(n))


def test_shards_are_about_equal() -> None:
    specs = {f"w{i}": Spec(torch.float32, (1000, 10)) for i in range(3)}
    axes = AxisMap({name: (Fixed(1000), Fixed(10)) for name in specs}, {})
    sizes = [sum(spec.bytes for spec in Layout(axes, specs, 7).specs(shard).values()) for shard in range(7)]
    assert max(sizes) - min(sizes) <= 80


@EACH
@given(st.integers(1, 40), st.sampled_from(WINDOWS))
def test_the_windows_of_all_shards_are_the_window_of_the_model(
    twins: Twins | None, shards: int, window: Selection
) -> None:
    layout = Layout(AXES, SPECS, shards, twins=twins)
    whole = extract(VALUES, AXES, window)
    out = {name: torch.full_like(value, torch.nan) for name, value in whole.items()}
    for shard in range(len(layout)):
        parts = layout.parts(shard, window)
        pieces = layout.cut(parts, cut(layout, shard))
        assert [Spec.of(piece) for piece in pieces] == layout.shapes(parts)
        for part, value in zip(parts, pieces, strict=True):
            rows_of(out[part.piece.tensor], part.rows).copy_(value)
    assert all(torch.equal(out[name], value) for name, value in whole.items())


@EACH
@settings(max_examples=25)
@given(st.integers(1, 40), st.booleans())
def test_merged_shards_are_the_merged_model(twins: Twins | None, shards: int, masked: bool) -> None:
    layout = Layout(AXES, SPECS, shards, twins=twins)
    only = {"head": (0, ((1, 3), (4, 5)))} if masked else {}
    given_values = [
        Contribution(n, window, {k: v + n for k, v in extract(VALUES, AXES, window).items()}, n + 1.0, only)
        for n, window in enumerate(WINDOWS)
    ]
    whole = {name: value.clone() for name, value in VALUES.items()}
    merge = Merge(whole, AXES, twins=twins)
    for one in given_values:
        merge.add(one)
    merge.apply()
    for shard in range(len(layout)):
        own, shares = cut(layout, shard), layout.shares(shard)
        joined = {share.tensor: share.joined(own) for share in shares}
        merge = Merge(joined, layout.joined_axes(shard), twins=layout.twins(shard))
        for one in given_values:
            parts = layout.parts(shard, one.selection)
            values = [rows_of(one.values[part.piece.tensor], part.rows) for part in parts]
            merge.add(layout.joined(shard, layout.contribution(shard, one, values)))
        merge.apply()
        for share in shares:
            share.part_(joined[share.tensor], own)
        for piece in layout.shards[shard]:
            want = whole[piece.tensor]
            want = want[piece.start : piece.stop] if want.ndim else want.reshape(1)
            assert torch.equal(own[piece.name], want)


@given(st.integers(1, 40), st.sampled_from(WINDOWS))
def test_frozen_parameters_lie_in_shards_and_are_not_handed_over(shards: int, window: Selection) -> None:
    layout = Layout(AXES, SPECS, shards, frozen={"both", "scale"})
    every = [part for n in range(len(layout)) for part in layout.parts(n, window)]
    handed = [part for n in range(len(layout)) for part in layout.handed(n, window)]
    assert {part.piece.tensor for part in every} == set(SPECS)
    assert handed == [part for part in every if part.piece.tensor not in ("both", "scale")]
    own = Contribution(0, window, {}, 1.0)
    for n in range(len(layout)):
        values = [torch.zeros(spec.shape) for spec in layout.shapes(layout.handed(n, window))]
        assert layout.contribution(n, own, values).values.keys() == {
            p.piece.name for p in layout.handed(n, window)
        }


@pytest.mark.parametrize("sizes", [(3,), (CHUNK // 4,), (CHUNK // 4 + 1, 5), (7, CHUNK, 0, CHUNK // 2)])
def test_a_strip_travels_in_chunks(sizes: tuple[int, ...]) -> None:
    source = [torch.randn(size) for size in sizes]
    sink = [torch.zeros(size) for size in sizes]
    there, here = Strip(source), Strip(sink)
    assert len(there) == 4 * sum(sizes)
    for chunk in reversed(range(there.chunks)):
        data = bytearray(there.length(chunk))
        there.read(chunk, data)
        assert len(data) <= CHUNK
        assert not here.write(chunk, data[:-1])
        assert here.write(chunk, data)
    assert all(torch.equal(a, b) for a, b in zip(source, sink, strict=True))
