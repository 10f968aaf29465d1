"""Width plans: by hand, and against every plan of the grid."""

from itertools import pairwise
from math import ceil, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import make_map, resnet18

from msfusion.core.axes import AxisInfo, AxisMap
from msfusion.core.widths import at_width, for_share, largest, parameter_count
from msfusion.errors import UserError

NET = make_map(
    {
        "embed": ["stream:8", "10"],
        "up": ["hidden:32", "stream:8"],
        "down": ["stream:8", "hidden:32"],
        "head": ["10", "stream:8"],
    },
    residual=["stream"],
)


def test_parameter_count_by_hand() -> None:
    assert parameter_count(NET, NET.tensors, {}) == 80 + 256 + 256 + 80
    assert parameter_count(NET, NET.tensors, {"hidden": 1}) == 80 + 8 + 8 + 80
    assert parameter_count(NET, NET.tensors, {"hidden": 1, "stream": 2}) == 20 + 2 + 2 + 20
    assert parameter_count(NET, ["up"], {"stream": 2}) == 64
    assert parameter_count(NET, [], {}) == 0


def test_at_width_by_hand() -> None:
    assert at_width(NET, 0.25, "inner") == {"hidden": 8}
    assert at_width(NET, 0.25, "all") == {"stream": 2, "hidden": 8}
    assert at_width(NET, 1, "all") == {"stream": 8, "hidden": 32}
    assert at_width(NET, 0.1, "all") == {"stream": 1, "hidden": 3}


def test_a_model_with_nothing_but_residual_axes_is_cut_there() -> None:
    assert at_width(make_map({"w": ["s:4", "3"]}, residual=["s"]), 0.5, "inner") == {"s": 2}


def test_axes_that_are_better_whole_stay_whole() -> None:
    axes = make_map({"w": ["a:4", "b:4"]}, whole={"b": "it is the input"})
    assert at_width(axes, 0.5, "all") == {"a": 2}
    assert for_share(axes, ["w"], 0.5, "all") == {"a": 2}


@pytest.mark.parametrize("width", [0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_width_is_above_0_and_at_most_1(width: float) -> None:
    with pytest.raises(UserError, match=r"expected a width in \(0, 1\], got"):
        at_width(NET, width, "inner")


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(UserError, match=r"expected a share of the parameters in \(0, 1\], got"):
        for_share(NET, NET.tensors, share, "inner")


def test_a_window_that_rounds_to_nothing_names_the_axis_and_a_width_that_suffices() -> None:
    for size in (*range(1, 130), 768, 1000, 4096):
        axes = make_map({"w": [f"wide:{2 * size}", f"narrow:{size}"]})
        with pytest.raises(UserError, match=f"the {size} units of axis 'narrow'") as raised:
            at_width(axes, 0.49 / size, "all")
        least = float(str(raised.value).split("take at least ")[1].split(",")[0])
        assert min(at_width(axes, least, "all").values()) == 1, size
        assert least < 0.52 / size  # and hardly more than that


@pytest.mark.parametrize(
    ("tensors", "whole"), [({"w": ["3", "4"]}, None), ({}, None), ({"w": ["a:4"]}, {"a": "it is the input"})]
)
def test_a_model_without_an_axis_to_cut(tensors: dict[str, list[str]], whole: dict[str, str] | None) -> None:
    axes = make_map(tensors, whole=whole)
    with pytest.raises(UserError, match="with an axis that can be cut"):
        at_width(axes, 0.5, "all")
    with pytest.raises(UserError, match="with an axis that can be cut"):
        for_share(axes, axes.tensors, 0.5, "inner")


def test_the_message_tells_why_axes_are_pinned_and_whole() -> None:
    """A few places per reason, and axes that are not cut by themselves."""
    pinned = {f"w{i}:0": "output of the model" for i in range(6)} | {"v:1": "cumsum"}
    axes = AxisMap({}, {"a": AxisInfo(8, whole="lies inside each unit of b")}, pinned=pinned)
    why = "output of the model pins w0:0, w1:0, w2:0, w3:0 and 2 more; cumsum pins v:1; a stays whole: lies"
    with pytest.raises(UserError, match=f"got none: {why} inside each unit of b; return only"):
        at_width(axes, 0.5, "all")


def test_inner_axes_first_and_the_stream_only_when_needed() -> None:
    total = 672
    assert for_share(NET, NET.tensors, 1.0, "inner") == {"hidden": 32}
    # 160 + 16 * hidden parameters while the stream is whole, until hidden is as narrow as the stream
    assert for_share(NET, NET.tensors, 336 / total, "inner") == {"hidden": 11}
    assert for_share(NET, NET.tensors, 288 / total, "inner") == {"hidden": 8}
    # from there on both alike: 20 * units + 2 * units^2
    assert for_share(NET, NET.tensors, 287 / total, "inner") == {"hidden": 7, "stream": 7}
    assert for_share(NET, NET.tensors, 238 / total, "inner") == {"hidden": 7, "stream": 7}
    assert for_share(NET, NET.tensors, 237 / total, "inner") == {"hidden": 6, "stream": 6}
    assert for_share(NET, NET.tensors, 0.25, "all").keys() == {"stream", "hidden"}


def test_too_small_a_share() -> None:
    with pytest.raises(UserError, match=r"takes a share of 0\.\d+, got a share of 0.001 of the parameters"):
        for_share(NET, NET.tensors, 0.001, "inner")


def test_largest_serves_any_monotone_capacity() -> None:
    asked: list[dict[str, int]] = []

    def fits(plan: dict[str, int]) -> bool:
        asked.append(plan)
        return plan["hidden"] <= 7

    assert largest(NET, fits, "inner", "7 units", str) == {"hidden": 7, "stream": 7}
    assert len(asked) < 60
    assert largest(NET, lambda plan: True, "inner", "all", str) == {"hidden": 32}
    with pytest.raises(UserError, match=r"takes \{'stream': 1, 'hidden': 1\}, got nothing: give"):
        largest(NET, lambda plan: False, "inner", "nothing", str)


def test_streams_that_divide_take_the_width_that_leaves_the_inner_axes_in_balance() -> None:
    total = parameter_count(NET, NET.tensors, {})
    # Both at 7: 238. With the whole stream hidden gets 4, half of the balance; with 4 of 8 it gets 19, four
    # times it.
    assert for_share(NET, NET.tensors, 238 / total, "inner", kinds={}) == {"hidden": 4}
    # Both at 5: 150. The whole stream does not fit; with 4 of 8, 80 + 8 * hidden, hidden gets 8.
    assert for_share(NET, NET.tensors, 150 / total, "inner", kinds={}) == {"stream": 4, "hidden": 8}


def test_a_narrow_stream_beside_much_wider_inner_axes_is_avoided() -> None:
    """Large tables: 368 parameters pay for the whole stream with 1 of 48 hidden units, an eighth of what
    would be in balance, or for half of it with 24, six times as many."""
    axes = make_map(
        {
            "embed": ["stream:8", "22"],
            "up": ["hidden:48", "stream:8"],
            "down": ["stream:8", "hidden:48"],
            "head": ["22", "stream:8"],
        },
        residual=["stream"],
    )
    whole = parameter_count(axes, axes.tensors, {})
    assert for_share(axes, axes.tensors, 368 / whole, "inner", kinds={}) == {"hidden": 1}
    assert parameter_count(axes, axes.tensors, {"stream": 4, "hidden": 24}) == 368


def test_inner_axes_twice_as_wide_as_in_balance_are_better_than_half_as_wide() -> None:
    """80 parameters pay for the whole stream with 4 hidden units, half of what would be in balance, or for
    half of it with 9, 2.25 times as many."""
    axes = make_map(
        {"up": ["hidden:32", "stream:8"], "down": ["stream:8", "hidden:32"], "head": ["2", "stream:8"]},
        residual=["stream"],
    )
    plan = for_share(axes, axes.tensors, 80 / parameter_count(axes, axes.tensors, {}), "inner", kinds={})
    assert plan == {"stream": 4, "hidden": 8}


def test_what_is_no_wider_than_its_stream_is_cut_with_it() -> None:
    axes = make_map({"in": ["mid:8", "s:8"], "out": ["s:8", "mid:8"], "head": ["4", "s:8"]}, residual=["s"])
    assert for_share(axes, axes.tensors, 80 / 160, "inner") == {"s": 5, "mid": 5}
    assert for_share(axes, axes.tensors, 80 / 160, "inner", kinds={}) == {"s": 4, "mid": 8}


def test_widths_that_divide_by_hand() -> None:
    total = parameter_count(NET, NET.tensors, {})
    assert for_share(NET, NET.tensors, 336 / total, "inner", kinds={}) == {"hidden": 8}  # of 11
    assert for_share(NET, NET.tensors, 1.0, "inner", kinds={}) == {"hidden": 32}
    # All at 19/32 would be 5 and 19; 4 and 16 fit, 8 and 16 do not, 4 and 32 do.
    share = (10 * 5 + 2 * 5 * 19 + 10 * 5) / total
    assert for_share(NET, NET.tensors, share, "all") == {"stream": 5, "hidden": 19}
    assert parameter_count(NET, NET.tensors, {"stream": 4, "hidden": 32}) == 336
    assert parameter_count(NET, NET.tensors, {"stream": 8, "hidden": 16}) == 416
    assert for_share(NET, NET.tensors, share, "all", kinds={}) == {"stream": 4, "hidden": 16}
    assert for_share(NET, NET.tensors, 340 / total, "all", kinds={}) == {"stream": 4, "hidden": 32}


def test_kinds_take_the_other_width_of_the_stream_where_the_first_does_not_fit() -> None:
    """212 parameters pay for the whole stream with 3 hidden units, or for 4 of 8 with 16. Of 16 kinds the
    first would have to have 16: 416."""
    total = parameter_count(NET, NET.tensors, {})
    kinds = {"stream": 1, "hidden": 16}
    assert for_share(NET, NET.tensors, 212 / total, "inner", kinds=kinds) == {"stream": 4, "hidden": 16}
    assert parameter_count(NET, NET.tensors, {"stream": 4, "hidden": 16}) == 208


def test_kinds_are_widened_one_by_one_where_nothing_else_fits() -> None:
    """336 parameters pay for the whole stream with 11 hidden units, or for 4 of 8 with 32. With 16 kinds the
    balance wants the first, which takes 416."""
    total = parameter_count(NET, NET.tensors, {})
    for kinds, parameters, plan in (
        ({"stream": 4, "hidden": 16}, 336, {"stream": 4, "hidden": 32}),
        ({"stream": 2, "hidden": 8}, 112, {"stream": 2, "hidden": 16}),
        ({"stream": 2, "hidden": 8}, 103, {"stream": 2, "hidden": 8}),
    ):
        assert for_share(NET, NET.tensors, parameters / total, "inner", kinds=kinds) == plan


@pytest.mark.parametrize("cut", ["inner", "all"])
def test_kinds_that_do_not_divide_their_axes_ask_nothing_of_others(cut: str) -> None:
    """A width that somebody asked for is taken as it is: 5 of 8, or 20 of 32."""
    for kinds in ({"stream": 5, "hidden": 20}, {"hidden": 10}, {"stream": 4, "hidden": 20}):
        assert for_share(NET, NET.tensors, 0.7, cut, kinds=kinds) == for_share(
            NET, NET.tensors, 0.7, cut, kinds={}
        )


def grid(axes: AxisMap, cut: str) -> list[dict[str, int]]:
    """Every plan that one width for the inner axes can give, from narrow to wide, where the stream "s" has
    the width over the balance."""
    inner = [axes.axes[name].size for name in axes.cuttable if name != "s"]
    balance = min(1.0, axes.axes["s"].size / max(inner)) if cut == "inner" else 1.0
    reach = {name: axes.axes[name].size / (balance if name == "s" else 1.0) for name in axes.cuttable}
    steps = sorted({0.0, *(round((u + 0.5) / r, 9) for r in reach.values() for u in range(ceil(r)))} | {1.0})
    middles = [*((a + b) / 2 for a, b in pairwise(steps) if b <= 1.0), 1.0]
    plans = [
        {n: min(axes.axes[n].size, max(1, round(w * reach))) for n, reach in reach.items()} for w in middles
    ]
    return [{n: u for n, u in p.items() if cut == "all" or n != "s" or u < axes.axes[n].size} for p in plans]


nets = st.builds(
    lambda inner, stream, classes: make_map(
        {
            "embed": [f"s:{stream}", "3"],
            **{f"up{i}": [f"h{i}:{size}*2", f"s:{stream}"] for i, size in enumerate(inner)},
            **{f"down{i}": [f"s:{stream}", f"h{i}:{size}*2"] for i, size in enumerate(inner)},
            "head": [str(classes), f"s:{stream}"],
        },
        residual=["s"],
    ),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 20),
    st.integers(1, 5),
)


@settings(max_examples=120, deadline=None)
@given(nets, st.floats(0.02, 1.0), st.sampled_from(["inner", "all"]))
def test_a_share_is_never_exceeded_and_always_used_up(axes: AxisMap, share: float, cut: str) -> None:
    names = list(axes.tensors)
    total = sum(prod(dim.size for dim in dims) for dims in axes.tensors.values())
    fitting = [p for p in grid(axes, cut) if parameter_count(axes, names, p) <= share * total]
    if not fitting:
        with pytest.raises(UserError):
            for_share(axes, names, share, cut)
        return
    plan = for_share(axes, names, share, cut)
    assert parameter_count(axes, names, plan) <= share * total
    assert plan == fitting[-1]
    dividing = for_share(axes, names, share, cut, kinds={})
    assert parameter_count(axes, names, dividing) <= share * total
    assert all(axes.axes[axis].size % width == 0 for axis, width in dividing.items())
    assert all(n in dividing for n in axes.cuttable if n != "s")
    if cut == "all":
        assert dividing.keys() == plan.keys()
        for axis, width in plan.items():  # no divisor that fits lies between the two
            size = axes.axes[axis].size
            assert not any(size % d == 0 for d in range(dividing[axis] + 1, width + 1))


@given(nets, st.floats(0.02, 1.0), st.sampled_from(["inner", "all"]))
def test_whoever_affords_more_holds_as_many_units_of_each_kind(axes: AxisMap, share: float, cut: str) -> None:
    names = list(axes.tensors)
    total = parameter_count(axes, names, {})
    try:
        least = for_share(axes, names, 0.4 * share, cut, kinds={})
    except UserError:
        return
    more = for_share(axes, names, share, cut, kinds=least)
    assert parameter_count(axes, names, more) <= share * total
    for axis in {**least, **more}:
        size = axes.axes[axis].size
        width, kinds = more.get(axis, size), least.get(axis, size)
        assert size % width == 0
        assert width % kinds == 0
    less = for_share(axes, names, 0.4 * share, cut, kinds=more)  # affords less than those
    assert parameter_count(axes, names, less) <= 0.4 * share * total


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 0.03, 0.005])
def test_the_share_of_a_resnet(share: float) -> None:
    axes = resnet18()
    plan = for_share(axes, axes.tensors, share, "inner")
    got = parameter_count(axes, axes.tensors, plan) / parameter_count(axes, axes.tensors, {})
    assert 0.9 * share < got <= share
    assert plan == for_share(axes, axes.tensors, share, "all")  # its blocks are no wider than their streams
