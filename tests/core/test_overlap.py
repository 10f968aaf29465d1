"""The overlap rate: by hand, held for whole epochs, and what that does to coverage."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import make_map
from torch import Tensor

from msfusion.core.coverage import Coverage
from msfusion.core.merge import Contribution, Merge
from msfusion.core.overlap import Kind, Rule, Signal, State, advance
from msfusion.core.windows import DoubleShift

KINDS: tuple[Kind, ...] = ("constant", "linear", "cosine", "exponential", "feedback")


def rates(rule: Rule, rounds: int, epoch: int = 1, shift: float | None = None) -> list[float]:
    state, out = State(rule.first), []
    for round in range(rounds):
        out.append(state.rate)
        state = advance(state, Signal(round, epoch, shift), rule)
    return out


def test_a_constant_rate() -> None:
    assert rates(Rule(first=0.3, last=0.9, rounds=5), 5) == [0.3] * 5


def test_a_linear_schedule() -> None:
    assert rates(Rule("linear", 0.0, 0.4, 5), 5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_cosine_schedule() -> None:
    half = math.sqrt(0.5) / 2
    expected = [0.8 * x for x in (1, 0.5 + half, 0.5, 0.5 - half, 0)]
    assert rates(Rule("cosine", 0.8, 0.0, 5), 5) == pytest.approx(expected)


def test_an_exponential_schedule_falls_by_the_same_factor() -> None:
    got = rates(Rule("exponential", 0.8, 0.0, 4), 4)
    assert (got[0], got[-1]) == pytest.approx((0.8, 0))
    falls = [a - b for a, b in pairwise(got)]
    assert [b / a for a, b in pairwise(falls)] == pytest.approx([math.exp(-1)] * 2)


@pytest.mark.parametrize(
    ("shift", "change"), [(2.0, 0.1), (8.0, 0.1), (1.0, 0.0), (math.sqrt(2), 0.05), (0.5, -0.1), (0.0, -0.1)]
)
def test_feedback_answers_the_shift(shift: float, change: float) -> None:
    after = advance(State(0.5), Signal(0, 1, shift), Rule("feedback", target=1.0, gain=0.1))
    assert after.rate == pytest.approx(0.5 + change)


def test_feedback_stays_within_its_bounds_and_needs_a_signal() -> None:
    rule = Rule("feedback", 0.2, gain=0.3, most=0.6)
    assert rates(rule, 4, shift=9.0) == pytest.approx([0.2, 0.5, 0.6, 0.6])
    assert rates(rule, 3, shift=0.1) == [0.2, 0, 0]
    assert rates(rule, 3) == [0.2] * 3


def test_feedback_hears_the_whole_epoch() -> None:
    rule, state = Rule("feedback", target=1.0, gain=0.1), State(0.5)
    for round, shift in enumerate((3.0, None, 1.0)):
        assert state.rate == 0.5
        state = advance(state, Signal(round, 3, shift), rule)
    assert state == State(pytest.approx(0.6), since=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_is_held_for_whole_epochs(kind: Kind) -> None:
    got = rates(Rule(kind, 0.1, 0.7, 30), 30, epoch=4, shift=3.0)
    assert all(len(set(got[i : i + 4])) == 1 for i in range(0, 28, 4))
    assert (len(set(got)) == 1) == (kind == "constant")


def test_a_rate_that_stays_does_not_restart_the_epochs() -> None:
    state = State(0.75)
    for round in range(9):
        state = advance(state, Signal(round, 3, 9.0), Rule("feedback", 0.75))
    assert state == State(0.75)


# --- coverage


def covered_after(kind: Kind, hold: bool) -> int:
    """Rounds until all of a matrix of 24 x 24 has been trained; width 1/4, four participants."""
    axes = make_map({"w": ["a:24", "b:24"]})
    sizes, widths = {"a": 24, "b": 24}, {"a": 6, "b": 6}
    plain = DoubleShift(sizes, 4, 0, {"a": 0, "b": 1})
    coverage, state = Coverage(axes, ["w"], widths), State(0.0)
    rule = Rule(kind, 0.0, 0.6, 100, gain=0.02)
    for round in range(100):
        schedule = replace(plain, overlap=state.rate, since=state.since if hold else 0)
        for participant in range(4):
            coverage.add(schedule.windows(round, participant, widths))
        if coverage.summary().share == 1:
            return round + 1
        epoch = schedule.epoch(widths) if hold else 1
        state = advance(state, Signal(round, epoch, 3.0), rule)
    return 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_moving_rate_covers_as_fast_as_a_constant_one(kind: Kind) -> None:
    assert covered_after(kind, hold=True) == covered_after("constant", hold=True) == 4


def test_a_rate_that_moves_within_epochs_does_not() -> None:
    """Why it is held: the grid changes under the participants."""
    assert covered_after("feedback", hold=False) > 8


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0.0, 0.3, 0.5, 0.7]), st.integers(1, 60), st.integers(2, 9))
def test_an_epoch_from_any_round_covers_all_pairs(overlap: float, since: int, participants: int) -> None:
    sizes, widths = {"a": 12, "b": 20}, {"a": 3, "b": 5}
    schedule = DoubleShift(sizes, participants, 5, {"a": 0, "b": 1}, overlap=overlap, since=since)
    coverage = Coverage(make_map({"w": ["a:12", "b:20"]}), ["w"], widths)
    for round in range(since, since + schedule.epoch(widths)):
        for participant in range(participants):
            coverage.add(schedule.windows(round, participant, widths))
    assert coverage.summary().share == 1


# --- model shift


LINE = make_map({"w": ["a:3"]})


def merged(*contributions: Contribution) -> Merge:
    merge = Merge({"w": torch.zeros(3)}, LINE, measure=True)
    for one in contributions:
        merge.add(one)
    return merge


def one(number: int, selection: tuple[int, int], values: list[float], weight: float = 1) -> Contribution:
    return Contribution(number, {"a": (selection,)}, {"w": torch.tensor(values)}, weight)


def test_shift_by_hand() -> None:
    """Unit 1 is shared: changes 2 and 6 with weights 1 and 3, mean 5; 1 * 9 + 3 * 1 over 4 * 25."""
    shift = merged(one(0, (0, 2), [9.0, 2.0]), one(1, (1, 3), [6.0, -7.0], 3)).shift()
    assert shift is not None
    assert (shift.spread, shift.size) == pytest.approx((12, 100), rel=1e-5)
    assert shift.ratio == pytest.approx(math.sqrt(0.12))


def test_shift_where_nothing_is_shared_or_nothing_moves() -> None:
    for merge in (
        merged(one(0, (0, 1), [9.0]), one(1, (1, 3), [6.0, 7.0])),
        merged(one(0, (0, 1), [0.0])),
        merged(),
    ):
        shift = merge.shift()
        assert shift is not None
        assert shift.ratio is None
    assert Merge({"w": torch.zeros(3)}, LINE).shift() is None


def test_shift_of_those_who_agree_is_nothing_and_starts_anew() -> None:
    merge = merged(one(0, (0, 3), [1.0, 2.0, 3.0]), one(1, (0, 3), [1.0, 2.0, 3.0]))
    shift = merge.shift()
    assert shift is not None
    assert shift.ratio == pytest.approx(0, abs=1e-3)
    merge.apply()
    assert merge.shift() == type(shift)(0.0, 0.0)


def test_shift_equals_plain_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    axes = make_map({"w": ["a:7", "b:5"]})
    base = torch.randn(7, 5, generator=draw)
    merge = Merge({"w": base}, axes, measure=True)
    changes: list[tuple[Tensor, Tensor, float]] = []
    for number, (rows, weight) in enumerate([((0, 4), 1.0), ((2, 7), 2.5), ((3, 6), 4.0)]):
        part = torch.randn(rows[1] - rows[0], 5, generator=draw)
        merge.add(Contribution(number, {"a": (rows,)}, {"w": part}, weight))
        full, mask = torch.zeros(7, 5), torch.zeros(7, 5)
        full[slice(*rows)], mask[slice(*rows)] = part - base[slice(*rows)], 1
        changes.append((full, mask, weight))
    total = sum(w * m for _, m, w in changes)
    mean = sum(w * d for d, _, w in changes) / total
    holders = sum(m for _, m, _ in changes)
    spread = sum((w * m * (d - mean) ** 2).sum() for d, m, w in changes)
    shift = merge.shift()
    assert shift is not None
    assert shift.spread == pytest.approx(float(spread), rel=1e-4)
    assert shift.size == pytest.approx(float((total * mean**2)[holders > 1].sum()), rel=1e-4)
