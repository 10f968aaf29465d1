"""Windows and schedules: by hand, then the laws that every schedule keeps, then those of the double shift."""

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import make_map, mask, members, resnet18

from msfusion.core.axes import Selection, Units, count, runs_of
from msfusion.core.coverage import Coverage
from msfusion.core.windows import (
    DoubleShift,
    Nested,
    OrderedDropout,
    RandomUnits,
    Rolling,
    Schedule,
    Whole,
    colour_axes,
    parted,
    window,
)

SIZES = {"a": 12, "b": 8, "c": 30, "d": 1}
COLOURS = {"a": 0, "b": 1, "c": 2, "d": 0}
SCHEDULES: dict[str, Schedule] = {
    "whole": Whole(),
    "nested": Nested(SIZES),
    "ordered dropout": OrderedDropout(SIZES, seed=3),
    "rolling": Rolling(SIZES),
    "random units": RandomUnits(SIZES, seed=3),
    "designed": DoubleShift(SIZES, 5, 3, COLOURS),
    "designed, overlapping": DoubleShift(SIZES, 5, 3, COLOURS, overlap=0.4),
    "in step": DoubleShift(SIZES, 5, 3, COLOURS, "in-step"),
    "independent": DoubleShift(SIZES, 5, 3, COLOURS, "independent"),
}
WIDTHS = {"a": 3, "b": 8, "c": 7, "d": 1}


# --- window


@pytest.mark.parametrize(
    ("size", "start", "length", "units"),
    [
        (10, 0, 3, ((0, 3),)),
        (10, 7, 3, ((7, 10),)),
        (10, 8, 3, ((0, 1), (8, 10))),
        (10, 18, 3, ((0, 1), (8, 10))),
        (10, -1, 2, ((0, 1), (9, 10))),
        (10, 4, 10, ((0, 10),)),
        (10, 4, 9, ((0, 3), (4, 10))),
        (1, 5, 1, ((0, 1),)),
    ],
)
def test_window_by_hand(size: int, start: int, length: int, units: Units) -> None:
    assert window(size, start, length) == units


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(-50, 50), st.data())
def test_window_is_cyclic(size: int, start: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, size))
    units = window(size, start, length)
    assert members(units) == {(start + i) % size for i in range(length)}
    assert count(units) == length
    assert all(stop < begin for (_, stop), (begin, _) in pairwise(units))
    assert window(size, start + size, length) == units


# --- every schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_a_pure_function(name: str) -> None:
    schedule = SCHEDULES[name]
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first = {(r, p): schedule.windows(r, p, WIDTHS) for r in range(12) for p in range(5)}
    backwards = dict(reversed(WIDTHS.items()))
    again = {(r, p): schedule.windows(r, p, backwards) for p in range(5) for r in reversed(range(12))}
    assert again == first
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_window_has_as_many_units_as_the_plan_says(name: str) -> None:
    for round in range(60):
        for participant in range(5):
            selection = SCHEDULES[name].windows(round, participant, WIDTHS)
            assert set(selection) <= set(WIDTHS)
            for axis, units in selection.items():
                assert all(0 <= start < stop <= SIZES[axis] for start, stop in units)
                assert all(stop < begin for (_, stop), (begin, _) in pairwise(units))
                if name == "ordered dropout":
                    assert 1 <= count(units) <= WIDTHS[axis]
                else:
                    assert count(units) == WIDTHS[axis]
            if name != "whole":  # an axis that is not named is whole
                assert all(WIDTHS[axis] == SIZES[axis] for axis in WIDTHS.keys() - selection.keys())


@pytest.mark.parametrize("name", SCHEDULES)
def test_axes_outside_the_plan_stay_whole(name: str) -> None:
    assert set(SCHEDULES[name].windows(3, 2, {"c": 4})) <= {"c"}
    assert SCHEDULES[name].windows(3, 2, {}) == {}


@pytest.mark.parametrize("name", ["ordered dropout", "random units", "independent", "designed", "in step"])
def test_another_seed_is_another_draw(name: str) -> None:
    other = {
        "ordered dropout": OrderedDropout(SIZES, 4),
        "random units": RandomUnits(SIZES, 4),
        "independent": DoubleShift(SIZES, 5, 4, COLOURS, "independent"),
        "designed": DoubleShift(SIZES, 5, 4, COLOURS),
        "in step": DoubleShift(SIZES, 5, 4, COLOURS, "in-step"),
    }[name]
    rounds = range(40)
    mine = [SCHEDULES[name].windows(r, 1, WIDTHS) for r in rounds]
    assert mine != [other.windows(r, 1, WIDTHS) for r in rounds]


def test_nested_by_hand() -> None:
    schedule = Nested({"a": 8})
    assert schedule.windows(0, 0, {"a": 3}) == schedule.windows(9, 4, {"a": 3}) == {"a": ((0, 3),)}


def test_rolling_by_hand() -> None:
    """All participants share the window; it moves by one unit a round, in every axis."""
    schedule = Rolling({"a": 4, "b": 3})
    assert [schedule.windows(r, 7, {"a": 2, "b": 1}) for r in range(4)] == [
        {"a": ((0, 2),), "b": ((0, 1),)},
        {"a": ((1, 3),), "b": ((1, 2),)},
        {"a": ((2, 4),), "b": ((2, 3),)},
        {"a": ((0, 1), (3, 4)), "b": ((0, 1),)},
    ]


def test_ordered_dropout_takes_a_level_of_the_width() -> None:
    schedule = OrderedDropout({"a": 100}, seed=0)
    drawn = {count(schedule.windows(r, p, {"a": 40})["a"]) for r in range(20) for p in range(5)}
    assert drawn == {10, 20, 30, 40}
    assert schedule.windows(0, 0, {"a": 1}) == {"a": ((0, 1),)}
    of_three = [count(schedule.windows(r, 0, {"a": 3})["a"]) for r in range(200)]
    assert {width: of_three.count(width) > 30 for width in of_three} == {1: True, 2: True, 3: True}
    assert of_three.count(3) > 1.5 * of_three.count(1)  # as three quarters of 3 are 3 as well


def test_ordered_dropout_draws_among_the_levels_that_a_participant_affords() -> None:
    """Quarters of the widest, 80 of 100 units: 20, 40, 60 and 80."""
    schedule = OrderedDropout({"a": 100, "b": 10}, seed=0, widest={"a": 80})

    def widths(own: int) -> list[int]:
        return [count(schedule.windows(r, 0, {"a": own})["a"]) for r in range(400)]

    drawn = {own: widths(own) for own in (80, 59, 19)}
    assert {own: set(units) for own, units in drawn.items()} == {80: {20, 40, 60, 80}, 59: {20, 40}, 19: {19}}
    for own, levels in ((80, 4), (59, 2)):
        assert all(abs(drawn[own].count(n) - 400 / levels) < 50 for n in set(drawn[own]))


def test_ordered_dropout_counts_a_level_within_a_unit_as_afforded_and_takes_the_least_of_all_axes() -> None:
    """Three quarters of 7 units are 5.25: 6 for who affords them, 5 for who affords 5. Of the other axis this
    participant affords a half."""
    pair = OrderedDropout({"a": 7, "b": 8}, seed=0, widest={"a": 7, "b": 8})
    one = OrderedDropout({"a": 7}, seed=0, widest={"a": 7})
    assert {count(one.windows(r, 0, {"a": 5})["a"]) for r in range(40)} == {2, 4, 5}
    drawn = [pair.windows(r, 0, {"a": 5, "b": 4}) for r in range(40)]
    assert {(count(own["a"]), count(own["b"])) for own in drawn} == {(2, 2), (4, 4)}
    whole = [pair.windows(r, 0, {}) for r in range(80)]
    assert {count(own["a"]) for own in whole} == {2, 4, 6, 7}


def test_random_units_reach_everything() -> None:
    schedule = RandomUnits({"a": 10}, seed=0)
    drawn = [members(schedule.windows(r, 0, {"a": 3})["a"]) for r in range(40)]
    assert set().union(*drawn) == set(range(10))
    assert len(set(map(frozenset, drawn))) > 20


def test_random_units_differ_between_axes_of_one_size() -> None:
    schedule = RandomUnits({"a": 30, "b": 30}, seed=0)
    selection = schedule.windows(0, 0, {"a": 10, "b": 10})
    assert selection["a"] != selection["b"]
    assert selection["a"] == schedule.windows(0, 0, {"a": 10})["a"]


# --- the double shift by hand

PAIR = {"a": 6, "b": 6}
HALF = {"a": 2, "b": 2}


def starts(schedule: Schedule, round: int, participants: int, axis: str) -> list[int]:
    widths = HALF
    return [_start(schedule.windows(round, p, widths)[axis]) for p in range(participants)]


def _start(units: Units) -> int:
    return units[0][0] if len(units) == 1 else units[1][0]


def test_three_participants_three_slots() -> None:
    """Axis a: participants take slots 0, 1, 2 and rotate. Axis b is one slot further each round."""
    schedule = DoubleShift(PAIR, 3, 0, {"a": 0, "b": 1})
    assert schedule.slots(HALF) == 3
    assert schedule.epoch(HALF) == 3
    assert [starts(schedule, r, 3, "a") for r in range(3)] == [[0, 2, 4], [2, 4, 0], [4, 0, 2]]
    assert [starts(schedule, r, 3, "b") for r in range(3)] == [[0, 2, 4], [4, 0, 2], [2, 4, 0]]


def test_one_participant_visits_the_nine_pairs_of_slots_in_nine_rounds() -> None:
    schedule = DoubleShift(PAIR, 1, 0, {"a": 0, "b": 1})
    assert schedule.epoch(HALF) == 9
    met = [(starts(schedule, r, 1, "a")[0], starts(schedule, r, 1, "b")[0]) for r in range(9)]
    assert sorted(met) == [(a, b) for a in (0, 2, 4) for b in (0, 2, 4)]


def test_nine_participants_visit_them_in_one_round() -> None:
    schedule = DoubleShift(PAIR, 9, 0, {"a": 0, "b": 1})
    assert schedule.epoch(HALF) == 1
    for round in range(4):
        met = {(a, b) for a, b in zip(starts(schedule, round, 9, "a"), starts(schedule, round, 9, "b"))}  # noqa: B905
        assert len(met) == 9


def test_a_coarsely_cut_axis_takes_few_diagonals() -> None:
    """Axis b goes around in two windows, so of the 16 offsets to axis a it takes the first and the ninth: all
    pairs in four rounds of eight participants, where 16 diagonals would take 32."""
    sizes, widths = {"a": 16, "b": 8}, {"a": 1, "b": 4}
    schedule = DoubleShift(sizes, 8, 0, {"a": 0, "b": 1})
    assert (schedule._grid(widths), schedule.epoch(widths), schedule._cycle(16)) == ((16, 2), 4, 32)
    met = [pairs_trained(schedule, sizes, widths, 8, range(rounds))["a", "b"] for rounds in (3, 4)]
    assert (met[0].sum(), met[1].sum()) == (96, 128)


def test_axes_of_one_colour_are_covered_as_fast_as_one() -> None:
    schedule = DoubleShift({"a": 16, "b": 8}, 4, 0, {"a": 1, "b": 1})
    widths = {"a": 2, "b": 4}
    assert (schedule._grid(widths), schedule.epoch(widths), schedule._cycle(8)) == ((8, 1), 2, 16)


def test_in_step_axes_of_one_size_always_start_together() -> None:
    schedule = DoubleShift(PAIR, 3, 0, {"a": 0, "b": 1}, "in-step")
    for round in range(30):
        assert starts(schedule, round, 3, "a") == starts(schedule, round, 3, "b")


def test_no_slot_is_for_rounding_alone() -> None:
    """15 steps of 0.7 x 2 go around 21 units; in floating point a little more than 15."""
    assert DoubleShift({"a": 21}, 3, 0, overlap=0.3).slots({"a": 2}) == 15


def test_three_colours_need_an_odd_number_of_slots() -> None:
    """Colours 0 and 2 would visit only every other offset of four slots."""
    sizes = {"a": 8, "b": 8, "c": 8}
    widths = dict.fromkeys(sizes, 2)
    assert DoubleShift(sizes, 3, 0, {"a": 0, "b": 1}).slots(widths) == 4
    assert DoubleShift(sizes, 3, 0, {"a": 0, "b": 1, "c": 2}).slots(widths) == 5


def test_the_finest_cut_sets_the_grid() -> None:
    schedule = DoubleShift({"a": 10, "b": 64}, 3, 0, {"a": 0, "b": 1})
    assert schedule.slots({"a": 4, "b": 32}) == 3
    assert schedule.slots({"a": 4, "b": 8}) == 8
    assert schedule.slots({}) == 1


def test_an_axis_that_the_plan_leaves_whole_has_no_part_in_the_grid() -> None:
    schedule = DoubleShift({"a": 6, "b": 4}, 3, 0, {"a": 0, "b": 1}, overlap=0.9)
    assert schedule.slots({"a": 6, "b": 2}) == schedule.slots({"b": 2}) == 4
    assert schedule.epoch({"a": 6, "b": 2}) == schedule.epoch({"b": 2}) == 2
    assert schedule.windows(1, 3, {"a": 6, "b": 2}) == schedule.windows(1, 3, {"b": 2})


def test_overlap_brings_the_slots_closer() -> None:
    schedule = DoubleShift({"a": 12}, 12, 0, {"a": 0}, overlap=0.5)
    assert schedule.slots({"a": 4}) == 6
    assert [_start(schedule.windows(0, p, {"a": 4})["a"]) for p in range(6)] == [0, 2, 4, 6, 8, 10]


def test_independent_starts_give_every_group_of_participants_its_own() -> None:
    """Six participants on three slots: two groups, each of which covers the axis."""
    schedule = DoubleShift(PAIR, 6, 0, {}, "independent")
    groups = [starts(schedule, 0, 6, "a")[:3], starts(schedule, 0, 6, "a")[3:]]
    assert groups[0] != groups[1]
    assert all(sorted((b - a) % 6 for a, b in pairwise(group)) == [2, 2] for group in groups)


# --- the double shift: laws


Case = tuple[dict[str, int], dict[str, int], dict[str, int]]


@st.composite
def cases(draw: st.DrawFn, colours: int = 4, most: int = 17) -> Case:
    """Sizes, widths and colours of two to four axes."""
    names = "abcd"[: draw(st.integers(2, 4))]
    sizes = {axis: draw(st.integers(1, most)) for axis in names}
    widths = {axis: draw(st.integers(1, size)) for axis, size in sizes.items()}
    return sizes, widths, {axis: draw(st.integers(0, colours - 1)) for axis in names}


overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9])
modes = st.sampled_from(["designed", "in-step", "independent"])
participants = st.one_of(st.integers(1, 4), st.integers(1, 60))


@settings(max_examples=100, deadline=None)
@given(
    cases(), overlaps, st.sampled_from(["designed", "in-step", "independent"]), st.integers(0, 5), st.data()
)
def test_enough_participants_cover_every_axis_in_every_round(
    case: Case,
    overlap: float,
    how: str,
    more: int,
    data: st.DataObject,
) -> None:
    sizes, widths, colours = case
    slots = DoubleShift(sizes, 1, 0, colours, overlap=overlap).slots(widths)
    schedule = DoubleShift(sizes, slots + more, 1, colours, how, overlap)
    first = data.draw(st.integers(0, 100))
    for round in range(first, first + 3):
        selections = [schedule.windows(round, p, widths) for p in range(slots + more)]
        for axis, units in covered(selections, sizes).items():
            assert units == set(range(sizes[axis]))


def covered(selections: list[Selection], sizes: Mapping[str, int]) -> dict[str, set[int]]:
    return {
        axis: set().union(*(members(s.get(axis, ((0, size),))) for s in selections))
        for axis, size in sizes.items()
    }


def pairs_trained(
    schedule: Schedule, sizes: Mapping[str, int], widths: Mapping[str, int], n: int, rounds: range
) -> dict[tuple[str, str], np.ndarray]:
    """For two axes: which pairs of units have been in one sub-model."""
    met = {(a, b): np.zeros((sizes[a], sizes[b]), dtype=bool) for a, b in combinations(sizes, 2)}
    for selection in (schedule.windows(r, p, widths) for r in rounds for p in range(n)):
        units = {axis: sorted(members(selection.get(axis, ((0, size),)))) for axis, size in sizes.items()}
        for (a, b), table in met.items():
            table[np.ix_(units[a], units[b])] = True
    return met


@settings(max_examples=120, deadline=None)
@given(cases(), overlaps, participants)
def test_designed_starts_train_every_entry_within_one_epoch(case: Case, overlap: float, n: int) -> None:
    sizes, widths, colours = case
    schedule = DoubleShift(sizes, n, 2, colours, overlap=overlap)
    epoch = schedule.epoch(widths)
    for first in (0, 3 * schedule._cycle(schedule.slots(widths))):
        met = pairs_trained(schedule, sizes, widths, n, range(first, first + epoch))
        assert all(table.all() for (a, b), table in met.items() if colours[a] != colours[b])


@settings(max_examples=200, deadline=None)
@given(cases(), overlaps, participants)
def test_an_epoch_is_no_longer_than_the_pairs_of_slots_allow(case: Case, overlap: float, n: int) -> None:
    """P D pairs, N of them per round; D is P where two colours are cut as finely as any."""
    sizes, widths, colours = case
    schedule = DoubleShift(sizes, n, 2, colours, overlap=overlap)
    (slots, diagonals), epoch = schedule._grid(widths), schedule.epoch(widths)
    assert n * (epoch - 1) < slots * diagonals <= n * epoch
    assert diagonals <= slots
    alike = DoubleShift(dict.fromkeys(colours, slots), n, 2, colours)
    several = slots > 1 and len(set(colours.values())) > 1
    assert alike._grid(dict.fromkeys(colours, 1))[1] == (slots if several else 1)


@settings(max_examples=200, deadline=None)
@given(cases(), overlaps)
def test_slots_are_the_least_that_cover_every_axis_and_suit_the_colours(case: Case, overlap: float) -> None:
    sizes, widths, colours = case
    slots = DoubleShift(sizes, 1, 0, colours, overlap=overlap).slots(widths)
    exact = Fraction(str(overlap))
    cut = [axis for axis in sizes if widths[axis] < sizes[axis]]
    least = max((sizes[a] / max(Fraction(1), (1 - exact) * widths[a]) for a in cut), default=Fraction(1))
    differences = range(1, max(colours.values()) + 1)
    assert slots >= least
    assert all(math.gcd(slots, difference) == 1 for difference in differences)
    between = range(math.ceil(least), slots)
    assert not any(all(math.gcd(p, d) == 1 for d in differences) for p in between)


@settings(max_examples=150, deadline=None)
@given(cases(), overlaps, st.integers(2, 40), st.integers(0, 200))
def test_neighbours_share_the_overlap_rounded_down(case: Case, overlap: float, n: int, round: int) -> None:
    """Participants on neighbouring slots of one diagonal share floor(overlap * width) units, or more.

    Whole groups of P participants fill one diagonal each; all but the last of a group have such a neighbour.
    """
    sizes, widths, colours = case
    schedule = DoubleShift(sizes, n, 2, colours, overlap=overlap)
    slots = schedule.slots(widths)
    by_place = {(p + round) % n: schedule.windows(round, p, widths) for p in range(n)}
    for place in range(n // slots * slots - 1):
        if (place + 1) % slots == 0:
            continue
        mine, next_ = by_place[place], by_place[place + 1]
        for axis, units in mine.items():
            least = math.floor(Fraction(str(overlap)) * widths[axis])
            assert len(members(units) & members(next_[axis])) >= least


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 16), st.data(), st.integers(1, 20))
def test_axes_in_step_never_train_all_pairs(size: int, data: st.DataObject, n: int) -> None:
    """Only entries less than a window from the diagonal: (2 width - 1) / size of them at most."""
    width = data.draw(st.integers(1, size // 2))
    sizes, widths = {"a": size, "b": size}, {"a": width, "b": width}
    band = {(i, (i + d) % size) for i in range(size) for d in range(1 - width, width)}
    for schedule in (DoubleShift(sizes, n, 0, {"a": 0, "b": 1}, "in-step"), Rolling(sizes)):
        ((_, met),) = pairs_trained(schedule, sizes, widths, n, range(40)).items()
        assert {(int(i), int(j)) for i, j in zip(*met.nonzero(), strict=True)} <= band
        assert met.mean() <= (2 * width - 1) / size < 1


def test_rolling_and_in_step_reach_their_ceiling() -> None:
    sizes, widths = {"a": 8, "b": 8}, {"a": 2, "b": 2}
    for schedule in (DoubleShift(sizes, 4, 0, {"a": 0, "b": 1}, "in-step"), Rolling(sizes)):
        ((_, met),) = pairs_trained(schedule, sizes, widths, 4, range(100)).items()
        assert met.mean() == 3 / 8


@pytest.mark.parametrize("how", ["designed", "independent"])
def test_every_participant_meets_every_unit_in_time(how: str) -> None:
    sizes, widths = {"a": 16, "b": 16}, {"a": 4, "b": 4}
    for n in (1, 3, 4, 5, 11):
        schedule = DoubleShift(sizes, n, 0, {"a": 0, "b": 1}, how)
        for participant in range(n):
            selections = [schedule.windows(r, participant, widths) for r in range(60)]
            assert all(units == set(range(16)) for units in covered(selections, sizes).values())


@settings(max_examples=80, deadline=None)
@given(cases(), overlaps, participants, st.data())
def test_participants_of_different_widths_keep_the_promise_of_the_narrowest(
    case: Case, overlap: float, n: int, data: st.DataObject
) -> None:
    sizes, least, colours = case
    own = [
        {axis: data.draw(st.integers(width, sizes[axis])) for axis, width in least.items()}
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    narrowest = {axis: min(widths[axis] for widths in own) for axis in least}
    schedule = DoubleShift(sizes, n, 2, colours, overlap=overlap, narrowest=narrowest)
    met = {(a, b): np.zeros((sizes[a], sizes[b]), dtype=bool) for a, b in combinations(sizes, 2)}
    for round in range(schedule.epoch(narrowest)):
        for participant in range(n):
            selection = schedule.windows(round, participant, own[participant % len(own)])
            units = {a: sorted(members(selection.get(a, ((0, size),)))) for a, size in sizes.items()}
            for (a, b), table in met.items():
                table[np.ix_(units[a], units[b])] = True
    assert all(table.all() for (a, b), table in met.items() if colours[a] != colours[b])


def test_windows_do_not_reach_all_of_a_tensor_that_follows_one_axis_twice() -> None:
    """The limit of every contiguous window; scattered units reach the rest."""
    axes = make_map({"w": ["a:16", "a:16"]})
    (dims,) = axes.tensors.values()
    for schedule, share in ((DoubleShift({"a": 16}, 4, 0), 7 / 16), (RandomUnits({"a": 16}, 0), 1)):
        met = sum(mask(dims, schedule.windows(r, p, {"a": 4})) for r in range(100) for p in range(4))
        assert (met > 0).mean() == share


# --- colours


def test_colours_by_hand() -> None:
    assert colour_axes("abc", [("a", "b"), ("b", "c")]) == {"a": 0, "b": 1, "c": 0}
    assert colour_axes("abc", [("a", "b"), ("b", "c"), ("a", "c")]) == {"a": 0, "b": 1, "c": 2}
    assert colour_axes("ab", []) == {"a": 0, "b": 0}
    assert colour_axes("ab", [("a", "x"), ("a", "a")]) == {"a": 0, "b": 0}


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.tuples(st.sampled_from("abcdefg"), st.sampled_from("abcdefg")).filter(lambda p: p[0] != p[1]))
)
def test_axes_that_meet_differ_in_colour(meetings: set[tuple[str, str]]) -> None:
    colours = colour_axes("abcdefg", sorted(meetings))
    assert list(colours) == list("abcdefg")
    assert all(colours[a] != colours[b] for a, b in meetings)
    degree = max((sum(axis in pair for pair in meetings) for axis in "abcdefg"), default=0)
    assert max(colours.values()) <= degree


def test_two_factors_of_one_dimension_are_all_trained() -> None:
    """Groups times heads within one dimension: every pair is an entry of its own."""
    axes = make_map({"w": ["groups:6*heads:6", "3"]})
    sizes = {axis: info.size for axis, info in axes.axes.items()}
    schedule = DoubleShift(sizes, 3, 0, colour_axes(axes.cuttable, axes.meetings()))
    widths = {"groups": 2, "heads": 2}
    ((_, met),) = pairs_trained(schedule, sizes, widths, 3, range(schedule.epoch(widths))).items()
    assert met.all()


def test_a_resnet_takes_three_colours() -> None:
    axes = resnet18()
    colours = colour_axes(axes.cuttable, axes.meetings())
    assert set(colours.values()) == {0, 1, 2}
    assert all(colours[a] != colours[b] for a, b in axes.meetings())


# --- axes that meet themselves


@pytest.mark.parametrize(
    ("start", "length", "first", "gap", "units"),
    [
        (0, 4, 2, 0, ((0, 4),)),
        (0, 4, 2, 4, ((0, 2), (6, 8))),
        (10, 4, 2, 4, ((4, 6), (10, 12))),
        (9, 5, 2, 3, ((2, 5), (9, 11))),
        (0, 4, 2, 100, ((0, 2), (10, 12))),
        (6, 4, 2, 8, ((4, 8),)),
    ],
)
def test_a_window_in_two_halves(start: int, length: int, first: int, gap: int, units: Units) -> None:
    assert parted(12, start, length, first, gap) == units


HIDDEN = {"h": 24}


@given(st.integers(1, 23), st.integers(0, 23), st.booleans(), st.integers(0, 50), st.integers(0, 6))
def test_halves_have_the_width_and_wider_windows_hold_them(
    width: int, more: int, twins: bool, round: int, participant: int
) -> None:
    schedule = DoubleShift(HIDDEN, 7, 3, narrowest={"h": width}, meet_themselves=frozenset("h"), twins=twins)
    narrow = schedule.windows(round, participant, {"h": width})["h"]
    assert count(narrow) == width
    assert narrow == runs_of(members(narrow))
    if width + more < 24:
        wide = schedule.windows(round, participant, {"h": width + more})["h"]
        assert count(wide) == width + more
        assert members(narrow) <= members(wide)
    if twins and 24 % width == 0:
        assert {unit % width for unit in members(narrow)} == set(range(width))


@given(st.integers(1, 23), st.integers(0, 30))
def test_every_second_round_has_windows_in_one_piece(width: int, half: int) -> None:
    """So that all units are trained in it, as on other axes."""
    plain, halves = (DoubleShift(HIDDEN, 30, 3, meet_themselves=frozenset(found)) for found in ("", "h"))
    rounds = [[s.windows(2 * half, n, {"h": width}) for n in range(30)] for s in (plain, halves)]
    assert rounds[0] == rounds[1]
    assert covered(rounds[1], HIDDEN)["h"] == set(range(24))


def test_every_entry_of_a_recurrent_weight_is_trained() -> None:
    """Windows in one piece never hold two units that lie further apart than they are long."""
    axes = make_map({"hh": ["4*h:24", "h:24"]})
    assert axes.meet_themselves() == {"h"}
    shares = []
    for halves in (frozenset[str](), axes.meet_themselves()):
        schedule = DoubleShift(HIDDEN, 8, 0, {"h": 0}, meet_themselves=halves)
        coverage = Coverage(axes, ["hh"], ["h"])
        for round in range(120):
            for participant in range(8):
                coverage.add(schedule.windows(round, participant, {"h": 6}))
        shares.append(coverage.summary().share)
    assert shares[0] < 0.5
    assert shares[1] == 1.0
