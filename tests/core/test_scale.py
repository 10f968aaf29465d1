"""The scale rule and rates by fan-in, by hand."""

from dataclasses import replace

import pytest
import torch

from msfusion.core.axes import AxisInfo, AxisMap, parse
from msfusion.core.merge import extract
from msfusion.core.scale import factors, fan_in, rates, rounded, scale_, undo_

AXES = AxisMap(
    tensors={
        "in": (parse("hidden:4"), parse("3")),
        "out": (parse("2"), parse("hidden:4")),
        "joint": (parse("2"), parse("hidden:4"), parse("heads:6")),
    },
    axes={"hidden": AxisInfo(4), "heads": AxisInfo(6)},
    summed={"out": {1: parse("hidden:4")}, "joint": {1: parse("hidden:4"), 2: parse("heads:6")}},
)


def test_the_factor_is_size_over_width_of_every_summed_axis() -> None:
    assert factors(AXES, {"hidden": 1}) == {"out": 4.0, "joint": 4.0}
    assert factors(AXES, {"hidden": 2, "heads": 2}) == {"out": 2.0, "joint": 6.0}
    assert factors(AXES, {"heads": 3}) == {"joint": 2.0}


def test_whole_axes_have_no_factor() -> None:
    assert factors(AXES, {}) == {}
    assert factors(AXES, {"hidden": 4, "heads": 6}) == {}


@pytest.mark.parametrize(("power", "expected"), [(1.0, 4.0), (0.5, 2.0), (2.0, 16.0)])
def test_power(power: float, expected: float) -> None:
    assert factors(AXES, {"hidden": 1}, power)["out"] == expected


def test_power_zero_switches_the_rule_off() -> None:
    assert factors(AXES, {"hidden": 1}, 0.0) == {}


def test_a_window_gives_the_sum_that_the_whole_gives_on_average() -> None:
    """Weights 1, 2, 3, 4 on inputs of 1 sum to 10; the four windows of one unit give 4, 8, 12, 16."""
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    sums = []
    for unit in range(4):
        own = {"out": weights[unit : unit + 1].clone()}
        scale_(own, factors(AXES, {"hidden": 1}))
        sums.append(float(own["out"].sum()))
    assert sums == [4.0, 8.0, 12.0, 16.0]
    assert sum(sums) / 4 == float(weights.sum())


def test_scale_is_in_place_and_leaves_the_others_alone() -> None:
    values = {"out": torch.tensor([1.0, -2.0, 3.0]), "in": torch.tensor([5.0])}
    same = values["out"]
    scale_(values, {"out": 3.0, "not here": 7.0})
    assert values["out"] is same
    assert same.tolist() == [3.0, -6.0, 9.0]
    assert values["in"].tolist() == [5.0]


def test_undo_is_exact_for_powers_of_two_and_within_one_rounding_otherwise() -> None:
    start = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for factor in (2.0, 0.25, 3.0, 10 / 3):
        values = {"w": start.clone()}
        scale_(values, {"w": factor})
        scale_(values, {"w": factor}, undo=True)
        if factor in (2.0, 0.25):
            assert torch.equal(values["w"], start)
        torch.testing.assert_close(values["w"], start, rtol=2.4e-7, atol=0)


def test_fan_in_counts_the_inputs_that_an_operation_sums_over() -> None:
    assert fan_in(AXES, {}) == {"out": 4, "joint": 24}
    assert fan_in(AXES, {"hidden": 3, "heads": 2}) == {"out": 3, "joint": 6}


SIDE_BY_SIDE = AxisMap(
    tensors={"proj": (parse("8"), parse("heads:4*16")), "join": (parse("10"), parse("a:4 + b:12"))},
    axes={"heads": AxisInfo(4), "a": AxisInfo(4), "b": AxisInfo(12)},
    summed={"proj": {1: parse("heads:4*16")}, "join": {1: parse("a:4 + b:12")}},
)


def test_heads_count_with_what_is_in_them_and_parts_side_by_side_add_up() -> None:
    assert fan_in(SIDE_BY_SIDE, {}) == {"proj": 64, "join": 16}
    assert fan_in(SIDE_BY_SIDE, {"heads": 1, "a": 2}) == {"proj": 16, "join": 14}
    assert factors(SIDE_BY_SIDE, {"heads": 1, "a": 2, "b": 6}) == {"proj": 4.0, "join": 2.0}


def test_parts_that_are_cut_to_different_widths_have_factors_of_their_own() -> None:
    (factor,) = factors(SIDE_BY_SIDE, {"b": 4}).values()
    assert isinstance(factor, torch.Tensor)
    assert factor.tolist() == [1.0] * 4 + [3.0] * 4


def test_before_a_norm_only_the_relation_of_the_parts_counts() -> None:
    """At 4 of 4 and 4 of 12 the full model sums over twice as many."""
    axes = replace(SIDE_BY_SIDE, normalised=frozenset({"join", "proj"}))
    assert factors(axes, {"heads": 2, "a": 2, "b": 6}) == {}
    (factor,) = factors(axes, {"b": 4}).values()
    assert isinstance(factor, torch.Tensor)
    assert factor.tolist() == [0.5] * 4 + [1.5] * 4


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        ("(a:4 + b:12)*2", [1.0] * 8 + [3.0] * 8),
        ("2*(a:4 + b:12)", ([1.0] * 4 + [3.0] * 4) * 2),
        ("b:12*(a:4 + b:12)", ([3.0] * 4 + [9.0] * 4) * 4),
        ("(a:4 + b:12)*3 + a:4", [1.0] * 12 + [3.0] * 12 + [1.0] * 4),
        ("b:12*3 + 2*b:12", None),
    ],
)
def test_parts_side_by_side_inside_products_have_factors_of_their_own(
    dim: str, expected: list[float] | None
) -> None:
    axes = AxisMap({"w": (parse(dim), parse("5"))}, {"b": AxisInfo(12)}, {"w": {0: parse(dim)}})
    factor = factors(axes, {"b": 4})["w"]
    if expected is None:
        assert factor == 3.0
    else:
        assert isinstance(factor, torch.Tensor)
        assert factor.tolist() == [[one] for one in expected]


def test_a_square_tensor_has_its_factors_in_the_dimension_that_is_summed_over() -> None:
    both = parse("a:4 + b:12")
    for place, shape in ((0, (8, 1)), (1, (1, 8))):
        axes = AxisMap({"w": (both, both)}, {"a": AxisInfo(4), "b": AxisInfo(12)}, {"w": {place: both}})
        factor = factors(axes, {"b": 4})["w"]
        assert isinstance(factor, torch.Tensor)
        assert factor.expand(shape).flatten().tolist() == [1.0] * 4 + [3.0] * 4


def test_an_axis_that_is_summed_over_twice_counts_twice() -> None:
    axes = AxisMap(
        {"w": (parse("5"), parse("a:8"), parse("a:8"))},
        {"a": AxisInfo(8)},
        {"w": {1: parse("a:8"), 2: parse("a:8")}},
    )
    assert factors(axes, {"a": 4}) == {"w": 4.0}
    assert fan_in(axes, {"a": 4}) == {"w": 16}


@pytest.mark.parametrize(("a", "b"), [(2, 6), (4, 6), (2, 12), (1, 4)])
def test_windows_over_parts_side_by_side_give_on_average_what_the_whole_gives(a: int, b: int) -> None:
    weights = {"join": torch.arange(160.0).view(10, 16) ** 2}
    parts = [(i * a, i * a + a, j * b, j * b + b) for i in range(4 // a) for j in range(12 // b)]
    total = torch.zeros(10)
    for first, last, start, stop in parts:
        own = extract(weights, SIDE_BY_SIDE, {"a": ((first, last),), "b": ((start, stop),)})
        scale_(own, factors(SIDE_BY_SIDE, {"a": a, "b": b}))
        total += own["join"].sum(1) / len(parts)
        scale_(own, factors(SIDE_BY_SIDE, {"a": a, "b": b}), undo=True)
        kept = [*range(first, last), *range(4 + start, 4 + stop)]
        torch.testing.assert_close(own["join"], weights["join"][:, kept])
    torch.testing.assert_close(total, weights["join"].sum(1))


def test_rates_are_lower_only_above_the_fan_in_that_the_learning_rate_is_for() -> None:
    assert rates(AXES, {}, 4) == {"joint": 4 / 24}
    assert rates(AXES, {}, 3) == {"out": 0.75, "joint": 0.125}
    assert rates(AXES, {"hidden": 2, "heads": 1}, 3) == {}


@pytest.mark.parametrize("widths", [{}, {"hidden": 2}, {"hidden": 3, "heads": 2}])
def test_an_entry_of_the_full_model_moves_by_as_much_whatever_the_width(widths: dict[str, int]) -> None:
    """A step of 1 times the rate in the sub-model; the scale rule takes its factor away again."""
    rate, factor = rates(AXES, widths, 2), factors(AXES, widths)
    moved = {name: rate.get(name, 1.0) / factor.get(name, 1.0) for name in ("out", "joint")}
    assert moved == pytest.approx({"out": 2 / 4, "joint": 2 / 24})


def test_only_factors_that_are_powers_of_two_round_nothing() -> None:
    each = torch.tensor([2.0, 4.0, 3.0], dtype=torch.float64)
    given = {"half": 2.0, "fourth": 0.25, "third": 3.0, "root": 2**0.5, "parts": each, "even": each[:2]}
    assert rounded(given) == {"third", "root", "parts"}


@pytest.mark.parametrize("factor", [3.0, 4 / 3, torch.tensor([[4 / 3], [2.0]], dtype=torch.float64)])
def test_what_nothing_changed_is_given_back_to_the_bit(factor: float | torch.Tensor) -> None:
    """Multiplied and divided alone, some of them end a digit off; what changed is divided as it is."""
    given = {"out": torch.randn(2, 500, generator=torch.Generator().manual_seed(0)), "in": torch.ones(2)}
    own, alone = ({name: value.clone() for name, value in given.items()} for _ in range(2))
    for values in (own, alone):
        scale_(values, {"out": factor})
        values["out"][:, 400:] += 1
    undo_(own, {"out": factor}, given, rounded({"out": factor}))
    scale_(alone, {"out": factor}, undo=True)
    assert (alone["out"] != given["out"])[:, :400].sum() > 20
    assert torch.equal(own["out"][:, :400], given["out"][:, :400])
    assert torch.equal(own["out"][:, 400:], alone["out"][:, 400:])
    assert torch.equal(own["in"], given["in"])
