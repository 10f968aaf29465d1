"""What a peer may say of itself, true or not, ends no other peer."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from msfusion.core.axes import Axis, AxisInfo, AxisMap, Fixed
from msfusion.core.merge import Contribution, Merge, Shift
from msfusion.learn.shards import Spec
from msfusion.peers import agreement
from msfusion.peers.home import contribution_of
from msfusion.peers.layout import Layout
from msfusion.peers.states import (
    Check,
    Decision,
    Entry,
    Given,
    Held,
    Left,
    Offer,
    State,
    Version,
    View,
)

STATE: TypeAdapter[State] = TypeAdapter(State)
MEMBERS, SHARDS, HEAD = 3, 4, {"head": (0, 10)}
AT = Version(1, "aa")
VIEW = View(2, 0, {n: f"s{n}" for n in range(MEMBERS)}, AT)
GIVEN = [Given(n, 10, 0.5, f"d{n}") for n in range(MEMBERS)]


def honest(number: int) -> State:
    """A member in the middle of a round."""
    held = Held("first", frozenset(range(SHARDS)), dict.fromkeys(range(SHARDS), (1.0, 2.0)))
    decision = Decision(VIEW.id, AT, Entry(tuple(GIVEN[:2]), (Left(2, "not here"),), 1.0, (1.0, 2.0)))
    return State(
        number,
        f"s{number}",
        10,
        AT,
        AT,
        {AT.text: held},
        VIEW,
        Offer(AT, GIVEN[number], {"head": (0, ((0, 3), (5, 6)))}),
        {n: Check(f"d{n}", 1.0, 5) for n in range(MEMBERS)},
        decision if number == VIEW.lead else None,
        hears=frozenset(range(MEMBERS)),
    )


HOSTILE: list[Any] = [
    *(0, -1, 3, 99, 2**53, 2**53 + 1, 10**400, 0.5, -1.0, 1e308, float("nan"), float("inf"), True, None),
    *("", "a", "../x", "9" * 5000 + "-a", "000001-" + "a" * 300, "1" * 18 + "-a"),
    *([], [0, 1], [[0, 1]], [[0, 10**6]], [[3, 1]], {}, {"head": [99, [[0, 1]]]}, {"head": [1, [[0, 100]]]}),
]
"""Values that stand for any part of a state."""


def spoiled(value: Any) -> Iterator[Any]:
    """The same with one part, or one key, that is something else."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from ({**value, key: other} for other in (*spoiled(part), *HOSTILE))
            rest = {name: part for name, part in value.items() if name != key}
            yield from ({**rest, other: part} for other in HOSTILE if isinstance(other, str))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in (*spoiled(part), *HOSTILE))


def heard(text: str, epoch: int = VIEW.epoch) -> State | None:
    """A state as the network takes it in, the newest view that it knows being of this epoch; None where it is
    passed over."""
    try:
        state = STATE.validate_json(text)
    except ValidationError:
        return None
    return state if agreement.sound(state, MEMBERS, SHARDS, HEAD, epoch) else None


AXES = AxisMap({"head": (Fixed(10), Axis("a", 8))}, {"a": AxisInfo(8)})
LAYOUT = Layout(AXES, {"head": Spec(torch.float32, (10, 8))}, 1)
WINDOW = {"a": ((0, 4),)}


def merged(offer: Offer) -> None:
    """What a home does with a contribution."""
    whole = contribution_of(offer, WINDOW)
    (part,) = LAYOUT.handed(0, WINDOW)
    own: Contribution = LAYOUT.contribution(0, whole, [torch.ones(10, 4)])
    merge = Merge({"head": torch.zeros(part.piece.rows, 8)}, LAYOUT.joined_axes(0), measure=True)
    merge.add(LAYOUT.joined(0, own))
    merge.shift()
    assert all(bool(torch.isfinite(now).all()) for _, _, now in merge.moved(1.0))


def assert_measurable(shift: tuple[float, float] | None) -> None:
    ratio = Shift(*shift).ratio if shift else None
    assert ratio is None or ratio >= 0


def looked_at(states: dict[int, State], number: int) -> None:
    """All that peer 2 does with what it has heard."""
    own = states[2]
    agreement.newest(states, SHARDS)
    agreement.may_begin(states, states, 1)
    agreement.begun_with(states, states)
    agreement.proposer(states)
    agreement.overruled(own, states)
    view = agreement.adopted(own, states)
    assert view is not None
    assert_measurable(agreement.whole_shift(AT, states, SHARDS))
    top = agreement.newest_view(states)
    assert top is not None
    proposed = replace(own, view=View(top.epoch + 1, 0, VIEW.members, AT))
    assert heard(STATE.dump_json(proposed).decode(), top.epoch) == proposed
    if not agreement.broken(view, states):
        holders = agreement.holders_of(view, SHARDS, 1)
        agreement.placed(view, AT, states, holders)
        found = agreement.checked(view, AT, states, {home for home, *_ in holders})
        good, left = agreement.accepted(found, bound=10.0)
        made = agreement.decision(view, AT, states, good, left, 1.0)
        decided = replace(own, decision=made)
        assert heard(STATE.dump_json(decided).decode(), top.epoch) == decided
        agreement.following(AT, made.entry)
        for offer in agreement.offers(view, AT, states).values():
            merged(offer)
    if told := states[number].decision:
        agreement.following(AT, told.entry)
        assert_measurable(told.entry.shift)


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_that_a_peer_says_of_itself_ends_another(number: int) -> None:
    """The lead and another member, with one part of what they say spoiled in every way."""
    others = {n: honest(n) for n in range(MEMBERS)}
    looked_at(others, number)
    taken = passed_over = 0
    for told in spoiled(json.loads(STATE.dump_json(honest(number)))):
        state = heard(json.dumps(told))
        if state is None or state.number != number:  # the network compares it with where it came from
            passed_over += 1
            continue
        taken += 1
        try:
            looked_at({**others, number: state}, number)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {json.dumps(told)[:2000]}") from error
    assert taken > 50
    assert passed_over > 500


@pytest.mark.parametrize(
    "changes",
    [
        {"holds": {"9" * 5000 + "-a": {"parent": "x", "shards": []}}},
        {"at": {"round": 1, "lineage": "a" * 300}},
        {"checks": {"0": {"digest": "d", "squares": -5.0, "count": 1}}},
        {"checks": {"0": {"digest": "d", "squares": float("nan"), "count": 1}}},
        {"checks": {"0": {"digest": "d", "squares": 1.0, "count": -3}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_cannot_be_is_passed_over(changes: dict[str, Any]) -> None:
    true = json.loads(STATE.dump_json(honest(1)))
    assert heard(json.dumps(true)) == honest(1)
    assert heard(json.dumps({**true, **changes})) is None
