"""What follows from what peers say of themselves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from msfusion.peers.agreement import (
    accepted,
    adopted,
    broken,
    checked,
    following,
    idle,
    may_begin,
    newest,
    overruled,
    proposer,
    sound,
)
from msfusion.peers.placing import place
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

FIRST = Version(0, "first")
ONE, OTHER = Version(1, "one"), Version(1, "other")
TWO = Version(2, "two")


def peer(number: int, committed: Version = FIRST, view: View | None = None, **holds: set[int]) -> State:
    """holds: name of a version -> shards; each came from the one named before it."""
    versions = {"one": (ONE, "first"), "other": (OTHER, "first"), "two": (TWO, "one")}
    own = {
        versions[name][0].text: Held(versions[name][1], frozenset(shards)) for name, shards in holds.items()
    }
    return State(number, f"s{number}", 10, committed, committed, own, view)


def states(*peers: State) -> dict[int, State]:
    return {one.number: one for one in peers}


def view(epoch: int, lead: int, members: tuple[int, ...], base: Version = FIRST) -> View:
    return View(epoch, lead, {n: f"s{n}" for n in members}, base)


@given(st.integers(1, 40), st.sets(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 3))
def test_every_shard_has_a_home_and_replicas_on_other_members(
    shards: int, members: set[int], replicas: int
) -> None:
    holders = place(shards, sorted(members), replicas)
    assert all(len(set(own)) == len(own) == min(1 + replicas, len(members)) for own in holders)
    assert {n for own in holders for n in own} <= members
    homes = [own[0] for own in holders]
    assert max(map(homes.count, members)) <= -(-shards // len(members))


def test_most_shards_stay_where_they_are_when_a_member_leaves() -> None:
    before = place(64, range(8), 1)
    after = place(64, [n for n in range(8) if n != 3], 1)
    copied = sum(len(set(now) - set(old)) for old, now in zip(before, after, strict=True))
    lost = sum(3 in old for old in before)
    assert lost <= copied <= 3 * lost


def test_a_run_goes_on_from_the_last_committed_version() -> None:
    here = states(peer(0, ONE, one={0, 1}), peer(1, FIRST, one={2}))
    assert newest(here, 3) == (ONE, frozenset())


def test_a_version_that_is_whole_counts_before_anyone_has_committed_it() -> None:
    here = states(peer(0, ONE, one={0, 1}, two={0}), peer(1, ONE, one={0, 1}, two={1}))
    assert newest(here, 2) == (TWO, frozenset())


def test_a_version_in_pieces_does_not_count() -> None:
    here = states(peer(0, ONE, one={0, 1}, two={0}), peer(1, ONE, one={0, 1}))
    assert newest(here, 2) == (ONE, frozenset())


def test_what_does_not_follow_from_the_committed_version_does_not_count() -> None:
    here = states(peer(0, OTHER, other={0, 1}, two={0, 1}))
    assert newest(here, 2) == (OTHER, frozenset())


def test_lost_shards_are_named() -> None:
    assert newest(states(peer(0, ONE, one={0, 3})), 4) == (ONE, {1, 2})


@pytest.mark.parametrize(("start", "begins"), [(1, True), (2, True), (3, False)])
def test_a_run_begins_when_enough_are_here(start: int, begins: bool) -> None:
    assert may_begin(states(peer(0), peer(2)), {}, start) == begins


@pytest.mark.parametrize(
    ("members", "here", "goes_on"),
    [
        ((0, 1, 2), [2], False),
        ((0, 1, 2), [0], False),
        ((0, 1, 2), [1, 2], True),
        ((0, 1), [0], True),
        ((0, 1), [1], False),
        ((1, 2, 4, 5), [1, 5], True),
        ((1, 2, 4, 5), [2, 4], False),
        ((1, 2, 4, 5), [2, 4, 5], True),
        ((3,), [3], True),
    ],
)
def test_in_round_0_one_side_of_a_cut_goes_on(
    members: tuple[int, ...], here: list[int], goes_on: bool
) -> None:
    led = view(1, members[0], members)
    assert may_begin(states(*(peer(n, view=led) for n in here)), {}, 1) == goes_on


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9)))
def test_never_do_both_sides_of_a_cut_go_on_in_round_0_and_with_all_there_is_one(
    members: set[int], side: set[int]
) -> None:
    led = view(1, min(members), tuple(members))
    sides = [own for own in (members & side, members - side) if own]
    assert sum(may_begin(states(*(peer(n, view=led) for n in own)), {}, 1) for own in sides) == 1


def test_the_newest_view_that_is_known_here_says_who_goes_on_in_round_0() -> None:
    all_three = view(1, 0, (0, 1, 2))
    assert not may_begin(states(peer(1, view=view(2, 0, (0, 1))), peer(2, view=all_three)), {}, 1)
    assert may_begin(states(peer(0), peer(1, view=all_three)), {}, 3)  # 0 has not adopted it yet


def test_restarted_members_count_in_round_0() -> None:
    led = view(1, 0, (0, 1, 2))
    assert may_begin(states(peer(1), peer(2, view=led)), {}, 3)


def test_nobody_begins_anew_who_knows_of_a_round_that_was_over() -> None:
    """A peer with an empty folder that was taken in later and has lost its link since, and its like."""
    led = view(4, 1, (0, 1, 2), TWO)
    ahead = peer(1, TWO, view=led)
    fresh = states(peer(0, view=led), peer(2, view=led))
    assert not may_begin(fresh, states(ahead), 1)
    assert not may_begin(states(peer(0)), states(ahead), 1)
    assert may_begin(fresh, states(peer(1)), 1)  # it has lost its folder, and was started again


def test_the_lowest_proposes_until_there_is_a_lead() -> None:
    assert proposer(states(peer(2), peer(1))) == 1
    led = view(1, 2, (1, 2))
    assert proposer(states(peer(0), peer(1, view=led), peer(2, view=led))) == 2


def test_a_member_follows_a_lead_that_died() -> None:
    led = view(1, 0, (0, 1, 2))
    assert proposer(states(peer(1, view=led), peer(2, view=led))) == 1


def test_the_newest_view_of_a_living_lead_is_adopted() -> None:
    old, new = view(1, 1, (0, 1)), view(2, 1, (0, 1))
    own = peer(0, view=old)
    assert adopted(own, states(own, peer(1, view=new))) == new
    assert adopted(own, states(own, peer(2, view=new))) == old


def test_a_view_that_goes_back_behind_a_commit_is_not_adopted() -> None:
    own = peer(0, ONE)
    assert adopted(own, states(own, peer(1, view=view(3, 1, (0, 1), FIRST)))) is None


def test_a_peer_that_the_others_have_left_behind_gives_in() -> None:
    own = peer(0, view=view(1, 0, (0, 1, 2)))
    assert overruled(own, states(own, peer(1, view=view(2, 1, (1, 2)))))
    assert not overruled(own, states(own, peer(1, view=view(2, 1, (0, 1, 2)))))


def test_a_restarted_member_breaks_a_view() -> None:
    led = view(1, 0, (0, 1))
    assert not broken(led, states(peer(0), peer(1)))
    assert broken(led, states(peer(0)))
    assert broken(View(1, 0, {0: "s0", 1: "before"}, FIRST), states(peer(0), peer(1)))


def test_the_lineage_is_that_of_the_values() -> None:
    one = Entry((Given(0, 10, 1.0, "aa"),), (), seconds=1.0)
    same = Entry((Given(0, 10, None, "aa"),), (), seconds=2.0)
    other = Entry((Given(0, 10, 1.0, "bb"),), ())
    assert following(ONE, one) == following(ONE, same)
    assert len({following(ONE, one), following(ONE, other), following(OTHER, one)}) == 3


@pytest.mark.parametrize(
    ("norms", "good"),
    [
        ({0: 1.0, 1: 2.0, 2: 3.0}, [0, 1, 2]),
        ({0: 1.0, 1: 1.0, 2: 11.0}, [0, 1]),
        ({0: 1.0, 1: 100.0}, [0, 1]),  # nothing to compare with
        ({0: 0.0, 1: 0.0, 2: 5.0}, [0, 1, 2]),
    ],
)
def test_a_change_that_is_much_larger_than_the_others_is_left_out(
    norms: dict[int, float], good: list[int]
) -> None:
    found = {n: [Check("d", norm**2 / 2, 50), Check("d", norm**2 / 2, 50)] for n, norm in norms.items()}
    kept, left = accepted(found, bound=10)
    assert kept == good
    assert [one.participant for one in left] == sorted(norms.keys() - set(good))


def test_who_trains_more_of_the_model_is_not_taken_for_wrong() -> None:
    """Changes of 0.1 everywhere, in sub-models of 10 and of 4,000 values, and of 2 in a small one."""
    sizes = {0: 10, 1: 10, 2: 10, 3: 4000}
    found = {n: [Check("d", size * 0.1**2, size)] for n, size in sizes.items()}
    assert accepted(found, bound=10) == ([0, 1, 2, 3], [])
    kept, left = accepted({**found, 0: [Check("d", 10 * 2.0**2, 10)]}, bound=10)
    assert kept == [1, 2, 3]
    assert left[0].reason == "change 20 times as large as the others'"


def test_values_that_are_not_finite_are_left_out() -> None:
    wrong = Check("d", 0.0, 0, "values that are not finite")
    found = {0: [Check("d", 1.0, 1), wrong], 1: [Check("d", 1.0, 1)]}
    kept, left = accepted(found, bound=10)
    assert kept == [1]
    assert left[0].reason == "values that are not finite"


def test_a_home_that_looks_at_nothing_is_known() -> None:
    """Two offers, three homes: one has looked at both, one at an older form of the second, one at none."""
    now = view(1, 0, (0, 1, 2))
    offered = {n: Offer(FIRST, Given(n, 10, 1.0, f"d{n}")) for n in (0, 1)}
    looked = {
        0: {0: Check("d0", 1.0, 1), 1: Check("d1", 1.0, 1)},
        1: {0: Check("d0", 1.0, 1), 1: Check("older", 1.0, 1)},
        2: {},
    }
    here = states(
        *(replace(peer(n, view=now), offer=offered.get(n), checks=checks) for n, checks in looked.items())
    )
    assert idle(now, FIRST, here, {0, 1, 2}) == {1, 2}
    assert idle(now, FIRST, here, {0}) == set()
    assert list(checked(now, FIRST, here, {0, 1})) == [0]
    assert not checked(now, FIRST, here, {0, 1, 2})


LED = view(1, 0, (0, 1, 2))
OFFERED = Offer(FIRST, Given(1, 10, 1.0, "d1"), {"head": (0, ((0, 3), (9, 10)))})


def moved_only(name: str, dimension: int, *runs: tuple[int, int]) -> Offer:
    return Offer(FIRST, OFFERED.given, {name: (dimension, runs)})


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 3},
        {"number": -1},
        {"hears": frozenset({0, 3})},
        {"checks": {3: Check("d", 1.0, 1)}},
        {"holds": {ONE.text: Held("first", frozenset({4}))}},
        {"holds": {ONE.text: Held("first", frozenset({0}), {-1: (0.0, 1.0)})}},
        {"view": view(1, 0, (1, 2))},
        {"view": view(1, 3, (1, 3))},
        {"offer": Offer(FIRST, Given(3, 10, 1.0, "d"))},
        {"decision": Decision((1, 0), FIRST, Entry((Given(3, 10, 1.0, "d"),), ()))},
        {"decision": Decision((1, 0), FIRST, Entry((), (Left(3, "not here"),)))},
        {"decision": Decision((1, 0), FIRST, Entry((OFFERED.given, OFFERED.given), ()))},
        {"decision": Decision((1, 0), FIRST, Entry((Given(1, 0, 1.0, "d1"),), ()))},
        {"offer": Offer(FIRST, Given(1, 0, 1.0, "d1"))},
        {"offer": moved_only("weight", 0, (0, 1))},
        {"offer": moved_only("head", 1, (0, 1))},
        {"offer": moved_only("head", 99, (0, 1))},
        {"offer": moved_only("head", 0, (-1, 1))},
        {"offer": moved_only("head", 0, (9, 11))},
        {"offer": moved_only("head", 0, (3, 3))},
        {"offer": moved_only("head", 0, (3, 5), (4, 6))},
        {"offer": moved_only("head", 0, (3, 5), (1, 2))},
    ],
    ids=str,
)
def test_a_state_speaks_of_what_there_is(changes: dict[str, object]) -> None:
    true = replace(peer(1, view=LED, one={0, 3}), offer=OFFERED, hears=frozenset({0, 2}))
    head = {"head": (0, 10)}
    assert sound(true, participants=3, shards=4, head=head, epoch=0)
    assert not sound(replace(true, **changes), participants=3, shards=4, head=head, epoch=0)


STATE: TypeAdapter[State] = TypeAdapter(State)


def test_a_state_travels_as_it_is() -> None:
    check = Check("d1", 2.0, 3)
    decided = Decision((1, 0), FIRST, Entry((OFFERED.given,), (Left(2, "not here"),), 0.5, (1.0, 2.0)))
    state = replace(
        peer(1, view=LED, one={0, 3}),
        offer=OFFERED,
        checks={1: check},
        decision=decided,
        hears=frozenset({2}),
    )
    assert STATE.validate_json(STATE.dump_json(state)) == state


@pytest.mark.parametrize("lineage", ["../../etc", "", "a/b", "*", "a b", "x\n"])
def test_versions_are_names_of_files_and_of_nothing_else(lineage: str) -> None:
    state = STATE.dump_json(replace(peer(1), at=Version(1, lineage)))
    with pytest.raises(ValidationError):
        STATE.validate_json(state)
    held = STATE.dump_json(replace(peer(1), holds={f"000001-{lineage}": Held("first", frozenset())}))
    with pytest.raises(ValidationError):
        STATE.validate_json(held)
    with pytest.raises(ValueError, match="version"):
        Version.parse(f"000001-{lineage}")
