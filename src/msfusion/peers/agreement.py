"""What follows from what peers say of themselves: pure functions of what is known of everyone."""

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

from msfusion.core.axes import Units
from msfusion.core.bound import too_large
from msfusion.peers.placing import place
from msfusion.peers.states import Check, Decision, Entry, Left, Offer, State, States, Version, View

_AHEAD = 2**20  # views that may have passed unseen


def sound(
    state: State, participants: int, shards: int, head: Mapping[str, tuple[int, int]], epoch: int
) -> bool:
    """Whether a state that came from elsewhere speaks of participants and shards that there are, of a view
    whose lead is in it, and of what can be merged.

    head: parameters of which a contribution may leave out positions -> the dimension of these, its size.
    epoch: that of the newest view that is known; one far ahead would leave no number for those to come.
    """
    view, decision, offer = state.view, state.decision, state.offer
    numbers = chain((state.number, *state.hears, *state.checks), view.members if view else ())
    held = (shard for held in state.holds.values() for shard in (*held.shards, *held.shifts))
    return (
        all(0 <= n < participants for n in numbers)
        and all(0 <= shard < shards for shard in held)
        and (view is None or (view.lead in view.members and view.epoch <= epoch + _AHEAD))
        and (decision is None or possible(decision.entry, participants))
        and (offer is None or _acceptable(offer, participants, head))
    )


def possible(entry: Entry, participants: int) -> bool:
    """Whether a round that somebody tells of can have been one of the run."""
    numbers = [given.participant for given in entry.given]
    return (
        numbers == sorted(set(numbers))
        and all(0 <= n < participants for n in (*numbers, *(left.participant for left in entry.left)))
        and all(given.examples for given in entry.given)
    )


def _acceptable(offer: Offer, participants: int, head: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a contribution comes from somebody, with a weight, and its positions are some of the head's."""
    return (
        0 <= offer.given.participant < participants
        and (offer.given.examples > 0 or offer.failed is not None)
        and all(
            name in head and head[name][0] == dimension and _ascend(runs, head[name][1])
            for name, (dimension, runs) in offer.only.items()
        )
    )


def _ascend(runs: Units, size: int) -> bool:
    """Whether runs lie one behind the other within ``size``."""
    ends = [end for run in runs for end in run]
    return all(a < b for a, b in runs) and ends == sorted(ends) and all(0 <= end <= size for end in ends)


def following(version: Version, entry: Entry) -> Version:
    """The version that a merge leads to."""
    facts = [
        version.lineage,
        [[g.participant, g.examples, g.digest] for g in entry.given],
    ]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    return Version(version.round + 1, digest)


def newest(states: States, shards: int) -> tuple[Version, frozenset[int]]:
    """The version to go on from, and the shards of it that nobody here holds.

    It is the newest that anyone has committed, or the one that follows from it where all its shards have
    been written already. Version 0 can be made by anyone.
    """
    committed = max(state.committed for state in states.values())
    after: dict[Version, set[int]] = {}
    here: set[int] = set(range(shards)) if committed.round == 0 else set()
    for state in states.values():
        for text, held in state.holds.items():
            version = Version.parse(text)
            if version == committed:
                here |= held.shards
            elif version.round == committed.round + 1 and held.parent == committed.lineage:
                after.setdefault(version, set()).update(held.shards)
    whole = [version for version, held in after.items() if len(held) == shards]
    if whole:
        return max(whole), frozenset()
    return committed, frozenset(range(shards)) - here


def may_begin(states: States, last: States, start: int) -> bool:
    """Whether those who are here may play round 0, of which everybody has every shard.

    A run begins with ``start`` peers. From the first view on, more than half of the newest view's members
    are needed, or half of them with the lowest, so that of a network that is cut only one side goes on,
    unless somebody is started again on the other; and nobody begins anew who knows of a round that was over.

    last: the last known states of all others, gone or not.
    """
    if any(state.committed.round > 0 for state in last.values()):
        return False
    view = newest_view(states)
    if view is None:
        return len(states) >= start
    here = view.members.keys() & states.keys()
    lowest = min(view.members) in here
    return 2 * len(here) + lowest > len(view.members)


def begun_with(states: States, last: States) -> list[int]:
    """Those who are not here and took part in what has begun.

    last: as for ``may_begin``.
    """
    view = newest_view(states)
    past = {number for number, state in last.items() if state.committed.round > 0}
    return sorted((past | (view.members.keys() if view else set())) - states.keys())


def proposer(states: States) -> int:
    """Who proposes the next view: the lead of the newest one, or else its lowest member, of those who are
    here; where nobody has a view, the lowest of all."""
    top = newest_view(states)
    if top is None:
        return min(states)
    left = [n for n, session in top.members.items() if n in states and states[n].session == session]
    if not left:
        return min(states)
    return top.lead if top.lead in left else min(left)


def newest_view(states: States) -> View | None:
    """That with the highest number; None where nobody follows any."""
    views = (state.view for state in states.values() if state.view)
    return max(views, key=lambda view: view.id, default=None)


def adopted(own: State, states: States) -> View | None:
    """The newest view that a peer may follow: its lead is here and follows it, the peer is in it, and it does
    not go back behind what the peer has committed."""
    views = [
        state.view
        for state in states.values()
        if state.view
        and state.view.lead == state.number
        and state.view.members.get(own.number) == own.session
        and state.view.base.round >= own.committed.round
    ]
    best = max(views, key=lambda view: view.id, default=None)
    if best is None or (own.view is not None and best.id < own.view.id):
        return own.view
    return best


def overruled(own: State, states: States) -> bool:
    """Whether a newer view goes on without this peer, which then has to wait until it is taken in."""
    return own.view is not None and any(
        state.view is not None
        and state.view.lead == state.number
        and state.view.id > own.view.id
        and own.number not in state.view.members
        for state in states.values()
    )


def broken(view: View, states: States) -> bool:
    """Whether a member is gone, or has been restarted."""
    return any(n not in states or states[n].session != session for n, session in view.members.items())


def placed(view: View, at: Version, states: States, holders: Sequence[tuple[int, ...]]) -> set[int]:
    """Members of an unbroken view that follow it, work on a version and hold what they should of it."""
    duty = duties(holders, view.members)
    return {
        n
        for n in view.members
        if (own := states[n].view) is not None
        and own.id == view.id
        and states[n].at == at
        and duty[n] <= held(states[n], at)
    }


def held(state: State, version: Version) -> frozenset[int]:
    """Shards of a version on a peer's disk."""
    own = state.holds.get(version.text)
    return own.shards if own else frozenset()


def shift_of(version: Version, states: States, shard: int) -> tuple[float, float] | None:
    """A shard's part of the model shift of the round that led to a version, if one of its holders is here."""
    held_by = (state.holds.get(version.text) for state in states.values())
    return next((held.shifts[shard] for held in held_by if held and shard in held.shifts), None)


def whole_shift(version: Version, states: States, shards: int) -> tuple[float, float] | None:
    """The model shift of the round that led to a version: the same sum, in the same order, for everyone;
    None unless all shards are here."""
    parts = [part for shard in range(shards) if (part := shift_of(version, states, shard)) is not None]
    if len(parts) < shards:
        return None
    most = sys.float_info.max
    return min(sum(spread for spread, _ in parts), most), min(sum(size for _, size in parts), most)


def duties(holders: Sequence[tuple[int, ...]], members: Iterable[int]) -> dict[int, set[int]]:
    """Member -> the shards that it holds, as a home or as a replica."""
    out: dict[int, set[int]] = {n: set() for n in members}
    for shard, own in enumerate(holders):
        for n in own:
            out[n].add(shard)
    return out


def holders_of(view: View, shards: int, replicas: int) -> list[tuple[int, ...]]:
    """Who holds which shard in a view, the home first."""
    return place(shards, sorted(view.members), replicas)


def offers(view: View, at: Version, states: States) -> dict[int, Offer]:
    """Contributions to a version that are on offer, ascending by participant."""
    return {n: offer for n, offer in _answers(view, at, states).items() if offer.failed is None}


def failures(view: View, at: Version, states: States) -> dict[int, str]:
    """Members whose training went wrong, and how."""
    answers = _answers(view, at, states)
    return {n: offer.failed for n, offer in answers.items() if offer.failed is not None}


def _answers(view: View, at: Version, states: States) -> dict[int, Offer]:
    return {
        n: offer
        for n in sorted(view.members)
        if (offer := states[n].offer) is not None and offer.version == at and offer.given.participant == n
    }


def checked(view: View, at: Version, states: States, homes: Collection[int]) -> dict[int, list[Check]]:
    """Contributions that all homes have looked at -> what each of them found."""
    found: dict[int, list[Check]] = {}
    for n, offer in offers(view, at, states).items():
        checks = [check for home in homes if (check := _check_of(view, at, states[home], n, offer))]
        if len(checks) == len(homes):
            found[n] = checks
    return found


def idle(view: View, at: Version, states: States, homes: Collection[int]) -> set[int]:
    """Homes that have not looked at every contribution that is on offer."""
    offered = offers(view, at, states).items()
    return {h for h in homes if any(not _check_of(view, at, states[h], n, offer) for n, offer in offered)}


def _check_of(view: View, at: Version, home: State, number: int, offer: Offer) -> Check | None:
    """What a home found in its part of an offer, if it has looked at it."""
    if home.at != at or home.view is None or home.view.id != view.id:
        return None
    check = home.checks.get(number)
    return check if check and check.digest == offer.given.digest else None


def accepted(found: Mapping[int, Sequence[Check]], bound: float) -> tuple[list[int], list[Left]]:
    """Who is merged, and who is not and why: ``bound`` is that of ``too_large``."""
    wrong = {
        n: reason for n, checks in found.items() if (reason := next((c.wrong for c in checks if c.wrong), ""))
    }
    wrong |= too_large({n: _root_mean_square(found[n]) for n in found if n not in wrong}, bound)
    return sorted(found.keys() - wrong.keys()), [Left(n, reason) for n, reason in sorted(wrong.items())]


def _root_mean_square(checks: Sequence[Check]) -> float:
    count = sum(check.count for check in checks)
    return float((sum(check.squares for check in checks) / count) ** 0.5) if count else 0.0


def decided(view: View, at: Version, state: State) -> Decision | None:
    """What a member has decided as the lead of a view, for the version that is worked on."""
    made = state.decision
    return made if made and (made.view, made.version) == (view.id, at) else None


def decision(
    view: View, at: Version, states: States, good: Sequence[int], left: Sequence[Left], seconds: float
) -> Decision:
    """The decision that merges ``good``."""
    offered = offers(view, at, states)
    entry = Entry(tuple(offered[n].given for n in sorted(good)), tuple(left), seconds)
    return Decision(view.id, at, entry)
