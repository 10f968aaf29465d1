"""Twins: three units by hand, then brute force and the law that makes them worth it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import labels, make_map, maps, randoms
from torch import Tensor, nn

from msfusion.capture import capture
from msfusion.core.axes import Axis, AxisInfo, AxisMap, Fixed, Selection
from msfusion.core.merge import Contribution, Merge, extract
from msfusion.core.scale import factors, scale_
from msfusion.core.twins import Twins, kinds
from msfusion.core.windows import window

LINE = make_map({"w": ["a:4"]})


def merged(tie: float) -> list[float]:
    values = {"w": torch.tensor([1.0, 2.0, 1.0, 2.0])}
    merge = Merge(values, LINE, twins=Twins(LINE, {"a": 2}, tie))
    merge.add(Contribution(0, {"a": ((0, 2),)}, {"w": torch.tensor([5.0, 4.0])}, 1))
    merge.add(Contribution(1, {"a": ((1, 3),)}, {"w": torch.tensor([3.0, 9.0])}, 3))
    merge.apply()
    return values["w"].tolist()


def test_two_kinds_in_four_units() -> None:
    """Changes of kind 0: +4 by weight 1, +8 by weight 3, mean 7; of kind 1: +2 by 1, +1 by 3, mean 1.25. Unit
    3 has none of its own."""
    assert merged(1.0) == [8.0, 3.25, 8.0, 3.25]
    assert merged(0.5) == [1 + (4 + 7) / 2, 3.25, 1 + (8 + 7) / 2, 2 + 1.25 / 2]
    assert merged(0.0) == [5.0, 3.25, 9.0, 2.0]


STREAM = {"s": ((0, 2),), "a": ((0, 1),)}
APART = {"s": ((2, 4),), "a": ((1, 2),)}


@pytest.mark.parametrize("tie", [0.0, 0.5, 1.0])
def test_twins_in_a_residual_stream_stay_alike(tie: float) -> None:
    """Two units inside a block, one kind; four of the stream, two kinds. One participant holds the first row
    and moves it by 2 and 4, the other the second row and moves it by 6 and 8."""
    axes = make_map({"w": ["a:2", "s:4"]})
    axes = replace(axes, axes={**axes.axes, "s": replace(axes.axes["s"], residual=True)})
    values = {"w": torch.zeros(2, 4)}
    merge = Merge(values, axes, twins=Twins(axes, {"a": 1, "s": 2}, tie))
    merge.add(Contribution(0, STREAM, {"w": torch.tensor([[2.0, 4.0]])}, 1))
    merge.add(Contribution(1, APART, {"w": torch.tensor([[6.0, 8.0]])}, 1))
    merge.apply()
    rows = [
        [own + tie * (mean - own) for own, mean in zip(row, (4, 6), strict=True)] for row in ((2, 4), (6, 8))
    ]
    assert values["w"].tolist() == [row * 2 for row in rows]


def test_the_kinds_of_a_head_and_of_segments() -> None:
    axes = make_map({"w": ["h:4*3", "h:4 + b:2 + 2"]})
    own = kinds(axes.tensors["w"][0], {"h": 2})
    assert own.first.tolist() == [0, 1, 2, 3, 4, 5]
    assert own.of.tolist() == [0, 1, 2, 3, 4, 5] * 2
    own = kinds(axes.tensors["w"][1], {"h": 2, "b": 1})
    assert own.first[own.of].tolist() == [0, 1, 0, 1, 4, 4, 6, 7]


def test_a_parameter_without_entries_has_no_twins() -> None:
    empty = {"empty": torch.zeros(0, 4)}
    axes = AxisMap({"empty": (Fixed(0), Axis("a", 4))}, {"a": AxisInfo(4)})
    Twins(axes, {"a": 2}, 0.5).start_(empty, 1.0)
    assert empty["empty"].shape == (0, 4)


def test_sums_over_kinds_of_which_some_have_fewer() -> None:
    """Seven units of three kinds: 0 3 6, 1 4, 2 5."""
    own = kinds(Axis("a", 7), {"a": 3})
    assert [(which.tolist(), indices.tolist()) for which, indices in own.ranks] == [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2], [3, 4, 5]),
        ([0], [6]),
    ]
    columns = torch.tensor([[1.0, 2, 4, 8, 16, 32, 64], [1, 1, 1, 1, 1, 1, 1]])
    assert own.sums(columns, 1).tolist() == [[73, 18, 36], [3, 2, 2]]


def kind_of(axes: AxisMap, name: str, at: tuple[int, ...], widths: Mapping[str, int]) -> tuple[object, ...]:
    """What an entry has in common with its twins: units by their kind; fixed indices by their place."""
    out: list[object] = []
    for dim, index in zip(axes.tensors[name], at, strict=True):
        label = labels(dim)
        same = [i for i, one in enumerate(label) if one == label[index]]
        rest = same.index(index)
        out.append((tuple((axis, unit % widths.get(axis, unit + 1)) for axis, unit in label[index]), rest))
    return tuple(out)


@given(st.data())
@settings(max_examples=60)
def test_the_mean_over_twins_is_that_of_a_plain_loop(data: st.DataObject) -> None:
    axes = data.draw(maps())
    widths = {a: data.draw(st.integers(1, info.size), label=a) for a, info in axes.axes.items()}
    twins = Twins(axes, widths, 1.0)
    totals, weights = randoms(axes, 1, torch.float64), randoms(axes, 2, torch.float64)
    for name, total in totals.items():
        weight = weights[name].abs() + 0.1
        mean = twins.mean(name, total, weight)
        sums: dict[tuple[object, ...], list[float]] = {}
        places = list(product(*map(range, total.shape)))
        for at in places:
            one = sums.setdefault(kind_of(axes, name, at, widths), [0.0, 0.0])
            one[0] += float(total[at])
            one[1] += float(weight[at])
        for at in places:
            above, below = sums[kind_of(axes, name, at, widths)]
            assert float(mean[at]) == pytest.approx(above / below)


def plain(normed: bool) -> nn.Module:
    norm: nn.Module = nn.LayerNorm(12) if normed else nn.Identity()
    return nn.Sequential(nn.Linear(5, 12), norm, nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def outputs(model: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(model, dict(values), (x,))


@pytest.mark.parametrize("normed", [False, True])
def test_every_window_and_the_full_model_are_one_function_at_the_start(normed: bool) -> None:
    model = plain(normed).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    captured = capture(model, (x,))
    widths = {axis: info.size // 4 for axis, info in captured.axes.axes.items() if info.whole is None}
    values = {name: p.detach() for name, p in model.named_parameters()}
    before = outputs(model, values, x)
    Twins(captured.axes, widths, 0.0).start_(values, power=1.0)
    full = outputs(model, values, x)
    assert not torch.allclose(full, before)
    for start in range(12):
        selection: Selection = {
            axis: window(captured.axes.axes[axis].size, start, width) for axis, width in widths.items()
        }
        own = extract(values, captured.axes, selection)
        scale_(own, factors(captured.axes, widths))
        assert torch.allclose(outputs(captured.narrow(widths), own, x), full, atol=1e-12)


def test_the_start_spreads_the_outputs_of_a_window_as_the_model_itself_does() -> None:
    """A sum over 16 of 256 inputs, 16-fold: a weight of standard deviation 1 becomes one of 1 / 4."""
    axes = AxisMap(
        make_map({"w": ["out:8", "in:256"]}).tensors, make_map({"w": ["out:8", "in:256"]}).axes,
        summed={"w": {1: Axis("in", 256)}},
    )  # fmt: skip
    values = {"w": torch.randn(8, 256, generator=torch.Generator().manual_seed(0))}
    Twins(axes, {"in": 16}, 0.0).start_(values, power=1.0)
    assert float(values["w"].std()) == pytest.approx(1 / 4, rel=0.1)
