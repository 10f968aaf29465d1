"""Coverage: by hand, against counts on full-size tensors, and the numbers of a ResNet-18."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import make_map, maps, mask, resnet18, selections

from msfusion.core.axes import AxisMap, Selection
from msfusion.core.coverage import Coverage, Summary, over_rounds
from msfusion.core.widths import at_width
from msfusion.core.windows import DoubleShift, Nested, RandomUnits, Rolling, Schedule, Starts, colour_axes
from msfusion.errors import UserError


def counted(tables: list[np.ndarray]) -> Summary:
    """Summary of one count per parameter."""
    all_of_them = np.concatenate([table.flatten() for table in tables])
    mean = float(all_of_them.mean())
    return Summary(
        share=float((all_of_them > 0).mean()),
        least=int(all_of_them.min()),
        mean=mean,
        variation=float(all_of_them.std() / mean) if mean else 0.0,
    )


def full_counts(axes: AxisMap, chosen: list[Selection]) -> dict[str, np.ndarray]:
    return {
        name: sum((mask(dims, s).astype(int) for s in chosen), np.zeros([d.size for d in dims], dtype=int))
        for name, dims in axes.tensors.items()
    }


def close(got: Summary, expected: Summary) -> None:
    assert got.least == expected.least
    assert (got.share, got.mean) == pytest.approx((expected.share, expected.mean), abs=1e-12)
    assert got.variation == pytest.approx(expected.variation, abs=1e-6)


def test_three_numbers() -> None:
    """Counts 2, 1, 0: two thirds are trained, 1 on average, standard deviation sqrt(2/3)."""
    coverage = Coverage(make_map({"w": ["a:3"]}), ["w"], ["a"])
    assert coverage.summary() == Summary(0.0, 0, 0.0, 0.0)
    coverage.add({"a": ((0, 2),)})
    coverage.add({"a": ((0, 1),)})
    close(coverage.summary(), Summary(2 / 3, 0, 1.0, (2 / 3) ** 0.5))


def test_parameters_weigh_as_many_as_they_are() -> None:
    """Half of 2 x 3 x 3, and all of 4: 13 of 22."""
    coverage = Coverage(make_map({"w": ["a:2", "3", "3"], "bias": ["4"]}), ["w", "bias"], ["a"])
    coverage.add({"a": ((1, 2),)})
    assert coverage.share() == coverage.summary().share == pytest.approx(13 / 22)
    assert coverage.of("bias") == Summary(1.0, 1, 1.0, 0.0)
    assert coverage.of("w").share == 0.5


def test_only_parameters_count() -> None:
    coverage = Coverage(make_map({"w": ["a:2"], "running": ["a:2"]}), ["w"], ["a"])
    coverage.add({})
    assert coverage.summary().share == 1
    with pytest.raises(KeyError):
        coverage.of("running")


@settings(max_examples=150, deadline=None)
@given(maps(), st.lists(selections, min_size=1, max_size=4), st.data())
def test_coverage_is_the_count_on_full_tensors(
    axes: AxisMap, chosen: list[Selection], data: st.DataObject
) -> None:
    parameters = data.draw(st.lists(st.sampled_from(sorted(axes.tensors)), min_size=1, unique=True))
    cut = {axis for selection in chosen for axis in selection}
    more = data.draw(st.sets(st.sampled_from(sorted(axes.axes)))) if axes.axes else set()
    coverage = Coverage(axes, parameters, cut | more)
    for selection in chosen:
        coverage.add(selection)
    tables = full_counts(axes, chosen)
    close(coverage.summary(), counted([tables[name] for name in parameters]))
    for name in parameters:
        close(coverage.of(name), counted([tables[name]]))


def test_scattered_units_agree_with_full_tensors() -> None:
    axes = make_map({"w": ["a:40", "2*b:30*2 + 7"], "v": ["b:30", "a:40"]})
    schedule = RandomUnits({"a": 40, "b": 30}, seed=0)
    chosen = [schedule.windows(r, p, {"a": 18, "b": 14}) for r in range(2) for p in range(3)]
    coverage = Coverage(axes, axes.tensors, ["a", "b"])
    for selection in chosen:
        coverage.add(selection)
    tables = full_counts(axes, chosen)
    close(coverage.summary(), counted(list(tables.values())))


def test_state_and_restore_go_on_where_they_were() -> None:
    axes = make_map({"w": ["a:6", "b:6"], "v": ["b:6"], "u": ["4"]})
    schedule = RandomUnits({"a": 6, "b": 6}, seed=0)
    widths = [{"a": 2, "b": 3}] * 2

    def fresh() -> Coverage:
        return Coverage(axes, axes.tensors, ["a", "b"])

    whole, first, second = fresh(), fresh(), fresh()
    rounds = list(over_rounds(whole, schedule, widths, 5))
    list(over_rounds(first, schedule, widths, 5))
    second.restore([table.clone() for table in first.state()])
    first.add({})
    assert second.summary() == rounds[-1]
    assert all(second.of(name) == whole.of(name) for name in axes.tensors)
    with pytest.raises(UserError, match=r"expected a saved coverage of 5 tables, got 4: .* anew"):
        second.restore(first.state()[:-1])


def test_over_rounds_tells_the_coverage_after_each_round() -> None:
    """Two participants, two slots of two units each: one round covers the axis."""
    axes = make_map({"w": ["a:4", "b:4"]})
    schedule = DoubleShift({"a": 4, "b": 4}, 2, 0, {"a": 0, "b": 1})
    widths = [{"a": 2, "b": 2}] * 2
    shares = [s.share for s in over_rounds(Coverage(axes, ["w"], ["a", "b"]), schedule, widths, 3)]
    assert shares == [0.5, 1.0, 1.0]


def test_participants_of_different_widths_count_as_they_train() -> None:
    axes = make_map({"w": ["a:4"]})
    coverage = Coverage(axes, ["w"], ["a"])
    (summary,) = over_rounds(coverage, Nested({"a": 4}), [{"a": 1}, {"a": 3}], 1)
    assert (summary.share, summary.least, summary.mean) == (0.75, 0, 1.0)


# --- ResNet-18, ten participants, every axis at the same width

PARTICIPANTS = 10


def resnet_case(width: float) -> tuple[AxisMap, dict[str, int], dict[str, int], dict[str, int]]:
    axes = resnet18()
    sizes = {axis: info.size for axis, info in axes.axes.items()}
    return axes, sizes, at_width(axes, width, "all"), colour_axes(axes.cuttable, axes.meetings())


def share_after(
    axes: AxisMap, schedule: Schedule, plan: dict[str, int], rounds: int, participants: int = PARTICIPANTS
) -> float:
    coverage = Coverage(axes, axes.tensors, axes.cuttable)
    for round in range(rounds):
        for participant in range(participants):
            coverage.add(schedule.windows(round, participant, plan))
    return coverage.summary().share


@pytest.mark.parametrize(
    ("width", "slots", "rounds", "before"),
    [(1 / 4, 5, 3, 0.888), (1 / 8, 9, 9, 0.990), (1 / 10, 11, 13, 0.993)],
)
def test_designed_starts_train_all_of_a_resnet(width: float, slots: int, rounds: int, before: float) -> None:
    axes, sizes, plan, colours = resnet_case(width)
    schedule = DoubleShift(sizes, PARTICIPANTS, 0, colours)
    assert schedule.slots(plan) == slots
    assert schedule.epoch(plan) == rounds
    assert share_after(axes, schedule, plan, rounds - 1) == pytest.approx(before, abs=5e-4)
    assert share_after(axes, schedule, plan, rounds) == 1


@pytest.mark.parametrize(("width", "ceiling"), [(1 / 4, 0.5361), (1 / 8, 0.2672), (1 / 10, 0.2136)])
def test_rolling_stops_at_its_ceiling(width: float, ceiling: float) -> None:
    """512 rounds bring every start back to 0; all participants share one window."""
    axes, sizes, plan, _ = resnet_case(width)
    assert share_after(axes, Rolling(sizes), plan, 512, 1) == pytest.approx(ceiling, abs=5e-5)


@pytest.mark.parametrize(
    ("starts", "width", "rounds", "share"),
    [
        ("in-step", 1 / 4, 100, 0.4907),
        ("in-step", 1 / 8, 100, 0.2323),
        ("in-step", 1 / 10, 100, 0.1836),
        ("independent", 1 / 4, 10, 0.99996),
        ("independent", 1 / 8, 10, 0.7553),
        ("independent", 1 / 10, 10, 0.6312),
    ],
)
def test_other_starts(starts: Starts, width: float, rounds: int, share: float) -> None:
    axes, sizes, plan, colours = resnet_case(width)
    schedule = DoubleShift(sizes, PARTICIPANTS, 0, colours, starts)
    assert share_after(axes, schedule, plan, rounds) == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize(("width", "share"), [(1 / 4, 0.0628), (1 / 8, 0.0158), (1 / 10, 0.0101)])
def test_nested_windows_train_one_corner(width: float, share: float) -> None:
    axes, sizes, plan, _ = resnet_case(width)
    assert share_after(axes, Nested(sizes), plan, 1, 1) == pytest.approx(share, abs=5e-5)


def test_designed_starts_train_evenly() -> None:
    """After 300 rounds at width 1/8 (the counts of one matrix; vectors are trained eight times as often)."""
    axes = make_map({"w": ["a:64", "b:64"]})
    sizes = {"a": 64, "b": 64}
    plan = {"a": 8, "b": 8}

    def variation(starts: Starts) -> float:
        schedule = DoubleShift(sizes, PARTICIPANTS, 0, {"a": 0, "b": 1}, starts)
        coverage = Coverage(axes, ["w"], ["a", "b"])
        for round in range(300):
            for participant in range(PARTICIPANTS):
                coverage.add(schedule.windows(round, participant, plan))
        return coverage.summary().variation

    assert variation("designed") < 0.1 < variation("independent") < 0.3
    assert variation("in-step") > 1.5
