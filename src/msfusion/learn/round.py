"""One round of training together, whatever carries the values."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from msfusion.core.axes import Selection
from msfusion.core.merge import Contribution
from msfusion.learn.attendance import Fate
from msfusion.learn.carried import Carried
from msfusion.learn.learner import Learner, Participant, Ready
from msfusion.learn.memory import Memory
from msfusion.learn.store import Store


@dataclass(frozen=True)
class Trained:
    """What one participant did in a round.

    first: it remembered nothing, so that the contrastive loss had no previous model.
    fate: what became of its contribution.
    """

    participant: Participant
    windows: Selection
    loss: float
    first: bool
    fate: Fate = "on time"


One: TypeAlias = tuple[Ready, Contribution, float, Memory | None]
"""A participant, what it hands over, lent until the next is asked for, its mean loss, and its memory."""

Trainer: TypeAlias = Callable[
    [int, Sequence[Participant], Learner, Store, Mapping[int, Memory]], Generator[One]
]
"""(round, participants, learner, store, what they remember) -> what they make of the store's values."""


@dataclass(frozen=True)
class Played:
    """What came of a round.

    merged: what the full model was made from, that of late contributions included.
    shift: the model shift, where it was measured.
    carried: what the next round needs beside the full model.
    one_by_one: why participants that were to train at once did not.
    """

    trained: list[Trained]
    merged: list[Selection]
    carried: Carried = field(default_factory=Carried)
    shift: float | None = None
    one_by_one: str | None = None


def play(
    round: int,
    participants: Sequence[Participant],
    learner: Learner,
    store: Store,
    step: float,
    carried: Carried,
    after_each: Callable[[], None] = lambda: None,
    fate: Callable[[int], Fate] = lambda participant: "on time",
    train: Trainer | None = None,
) -> Played:
    """Pull, train, push for every participant; then commit. What came late in the round before is merged
    first, as values: where the model has moved on since, it is drawn back towards them.

    carried: what the round before left.
    after_each: called after each participant; an exception that it raises leaves the store as it was
    before the round.
    fate: what becomes of a participant's contribution.
    train: who trains; by default this process, ``in_turn``.
    """
    done = []
    late = []
    merged = [one.selection for one in carried.late]
    previous = dict(carried.previous)
    try:
        for contribution in carried.late:
            store.push(contribution)
        with closing((train or in_turn)(round, participants, learner, store, previous)) as trained:
            for one, contribution, loss, memory in trained:
                number = one.participant.number
                before = previous.get(number)
                outcome = fate(number)
                if outcome == "on time":
                    store.push(contribution)
                    merged.append(one.windows)
                if memory is not None:
                    previous[number] = memory
                if outcome == "late":
                    late.append(_kept(contribution))
                done.append(Trained(one.participant, one.windows, loss, before is None, outcome))
                after_each()
    except BaseException:
        store.discard()
        raise
    shift = store.commit(step)
    done.sort(key=lambda one: one.participant.number)
    late.sort(key=lambda one: one.participant)
    why = learner.together.why_not if learner.together else None
    ratio = shift.ratio if shift else None
    return Played(done, merged, Carried(previous, tuple(late)), ratio, why)


def in_turn(
    round: int,
    participants: Sequence[Participant],
    learner: Learner,
    store: Store,
    previous: Mapping[int, Memory],
) -> Generator[One]:
    """Participants train in this process, one behind the other or in groups."""
    for group in learner.groups(round, participants):
        yield from _trained(round, group, learner, store, previous)


def _trained(
    round: int,
    group: Sequence[Ready],
    learner: Learner,
    store: Store,
    previous: Mapping[int, Memory],
) -> Generator[One]:
    together = learner.together
    if together and together.takes(len(group)) and (trained := learner.train_together(round, group, store)):
        for one, (contribution, loss) in zip(group, trained, strict=True):
            yield one, contribution, loss, None
        return
    for one in group:
        room = learner.submodels.room(one.windows) if learner.contrast is None else None
        number = one.participant.number
        values = store.pull(number, one.windows, room)
        before = previous.get(number)
        yield one, *learner.train(round, one.participant, one.windows, values, before, lend=True)


def _kept(contribution: Contribution) -> Contribution:
    values = {name: value.clone() for name, value in contribution.values.items()}
    return replace(contribution, values=values)
