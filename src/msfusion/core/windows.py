"""Which units each participant trains in each round.

A schedule is a pure function of (seed, round, participant) and the widths of that participant; windows are
never sent and never stored.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from msfusion.core.axes import Selection, Units, Widths, joined, runs_of
from msfusion.core.seeds import generator

Starts = Literal["designed", "independent", "in-step"]


def window(size: int, start: int, length: int) -> Units:
    """Units ``start .. start + length - 1`` modulo ``size``, as one run or two."""
    if length >= size:
        return ((0, size),)
    start %= size
    stop = start + length
    return ((start, stop),) if stop <= size else ((0, stop - size), (start, size))


def parted(size: int, start: int, length: int, first: int, gap: int) -> Units:
    """So many units in two windows: ``first`` of them, and the others a gap behind these, or as far behind as
    they can be."""
    begin = first + min(gap, size - length)
    return joined(sorted(window(size, start, first) + window(size, start + begin, length - first)))


class Schedule(Protocol):
    """Windows of one participant in one round; axes that are not named in ``widths`` stay whole."""

    def windows(self, round: int, participant: int, widths: Widths) -> Selection: ...


@dataclass(frozen=True)
class Whole:
    """Everybody trains everything (FedAvg)."""

    def windows(self, round: int, participant: int, widths: Widths) -> Selection:
        return {}


@dataclass(frozen=True)
class Nested:
    """The first units of every axis, always (HeteroFL, arXiv 2010.01264)."""

    sizes: Widths

    def windows(self, round: int, participant: int, widths: Widths) -> Selection:
        return {axis: window(self.sizes[axis], 0, width) for axis, width in widths.items()}


@dataclass(frozen=True)
class OrderedDropout:
    """The first units of every axis, as many as a draw from ``levels`` allows (FjORD, arXiv 2102.13451).

    Levels are shares of the widest sub-model, the same for all; a participant draws among those that it
    affords, or trains all that it affords where that is less than the lowest. A level and what a participant
    affords are both rounded to units: less than a unit too much counts as afforded, and is left away. FjORD
    draws for every batch; here a participant draws once per round. Its models of all widths share their
    values as they are, so there is no scale rule for it.

    widest: greatest width of each axis among the participants; by default everyone's own.
    """

    sizes: Widths
    seed: int
    widest: Widths = field(default_factory=dict)
    levels: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    def windows(self, round: int, participant: int, widths: Widths) -> Selection:
        most = self.widest or widths
        own = {axis: widths.get(axis, self.sizes[axis]) for axis in most}
        afforded = [
            level for level in self.levels if all(level * most[axis] < own[axis] + 1 for axis in most)
        ]
        draw = generator(self.seed, "ordered dropout", round, participant)
        level = draw.choice(afforded) if afforded else 1.0
        return {
            axis: window(self.sizes[axis], 0, min(own[axis], math.ceil(level * most[axis]))) for axis in most
        }


@dataclass(frozen=True)
class Rolling:
    """One window for all participants that moves by one unit per round, every axis in step (FedRolex,
    arXiv 2212.01548)."""

    sizes: Widths

    def windows(self, round: int, participant: int, widths: Widths) -> Selection:
        return {axis: window(self.sizes[axis], round, width) for axis, width in widths.items()}


@dataclass(frozen=True)
class RandomUnits:
    """Units drawn anew for every round and participant, without order (random sub-model; the draw is per
    axis, so every tensor that follows an axis keeps the same units)."""

    sizes: Widths
    seed: int

    def windows(self, round: int, participant: int, widths: Widths) -> Selection:
        return {axis: runs_of(self._draw(round, participant, axis, width)) for axis, width in widths.items()}

    def _draw(self, round: int, participant: int, axis: str, width: int) -> list[int]:
        draw = generator(self.seed, "random units", round, participant, axis)
        return draw.sample(range(self.sizes[axis]), width)


@dataclass(frozen=True)
class Apart:
    """Windows that share no unit and move from one to the next in every round, those of all axes in step
    (ours; core/apart.py). Widths divide the axes by one number and are the same for all participants.

    cycle: that number: of rounds until a participant comes back to its first windows.
    """

    sizes: Widths
    cycle: int

    def windows(self, round: int, participant: int, widths: Widths) -> Selection:
        number = (participant + round) % self.cycle
        return {axis: window(self.sizes[axis], number * width, width) for axis, width in widths.items()}


@dataclass(frozen=True)
class DoubleShift:
    """Windows that shift from participant to participant and from round to round (MSfusion, arXiv
    2407.03622; every formula here is ours).

    All axes share one grid of P slots, the least P with slots at most ``(1 - overlap) * width`` apart that
    shares no factor with a difference of two colours. The windows of neighbouring slots of an axis have at
    least ``floor(overlap * width)`` units in common, so the slots cover every axis; those of axes that are
    cut less finely have more. A participant trains slot ``i + floor((colour * d mod D) * P / D) (mod P)`` of
    an axis. With N >= P, ``i`` runs through all slots in a round (the participant shift, rotated by one each
    round) while the diagonal ``d`` moves on (the round shift). Axes that meet in a tensor have different
    colours, so their relative offset runs through D values, which go once around the less finely cut of the
    two; D is P where all are cut alike. Every entry of a tensor of two axes has been trained after about
    P D / N rounds. After P^2 / N rounds each axis is turned by a random offset, and diagonals begin anew.
    The grid is that of the narrowest windows: where participants differ, a wider window holds the narrowest
    one of its slot and more, so all this still holds. Where the overlap rate moves, it has to be held for
    whole epochs, and they are counted from ``since``.

    Units of an axis that meets itself in a tensor (the hidden units of a recurrent layer) would never be
    trained beside those further away than a window is long. In every second round its windows are in two
    halves, another gap apart each time; where units have twins, a multiple of the width, after which these
    repeat, so that a window still holds one of each kind. In such rounds the slots need not cover that axis.

    sizes: units of every axis.
    participants: N.
    narrowest: least width of each axis among the participants; by default everyone's own.
    meet_themselves: axes that meet themselves.
    twins: whether units have twins.
    colours: axis -> colour, from ``colour_axes``; with starts "in-step" they are ignored.
    starts: "designed" as above; "in-step": the same slot for every axis; "independent": a random start per
    round, diagonal and axis, participants shifted from there.
    overlap: overlap rate in [0, 1).
    since: round in which this rate began; the windows are those of this and later rounds.
    """

    sizes: Widths
    participants: int
    seed: int
    colours: Mapping[str, int] = field(default_factory=dict)
    starts: Starts = "designed"
    overlap: float = 0.0
    since: int = 0
    narrowest: Widths = field(default_factory=dict)
    meet_themselves: frozenset[str] = frozenset()
    twins: bool = False

    def windows(self, round: int, participant: int, widths: Widths) -> Selection:
        slots, diagonals = self._grid(widths)
        turn, place = divmod(round - self.since, self._cycle(slots))
        slot, diagonal = self._slot((participant + round) % self.participants, place, slots)
        drawn = (round, diagonal if diagonal >= 0 else slots + diagonal)
        colours = self.colours if self.starts == "designed" else {}
        return {
            axis: self._units(
                axis,
                (slot + colours.get(axis, 0) * diagonal % diagonals * slots // diagonals)
                * self.sizes[axis]
                // slots
                + math.floor(self._turn(turn, drawn, axis) * self.sizes[axis]),
                width,
                drawn,
            )
            for axis, width in self._cut(widths).items()
        }

    def _units(self, axis: str, start: int, width: int, when: tuple[int, int]) -> Units:
        """Those of a window that begins at ``start``, in a round and on a diagonal."""
        size, least = self.sizes[axis], self.narrowest.get(axis, width)
        if axis not in self.meet_themselves or when[0] % 2 == 0:
            return window(size, start, width)
        step = least if self.twins else 1
        gap = step * generator(self.seed, "gap", *when, axis).randrange((size - least) // step + 1)
        return parted(size, start, width, (least + 1) // 2, gap)

    def slots(self, widths: Widths) -> int:
        """P: the number of windows that it takes to go once around the finest-cut axis."""
        return self._grid(widths)[0]

    def epoch(self, widths: Widths) -> int:
        """Rounds until every pair of units of two axes of different colour has been trained."""
        return math.ceil(math.prod(self._grid(widths)) / self.participants)

    def _cycle(self, slots: int) -> int:
        """Rounds until axes are turned."""
        return math.ceil(slots**2 / self.participants)

    def _grid(self, widths: Widths) -> tuple[int, int]:
        """P and D: the offsets between two colours that it takes to go once around the less finely cut of
        them."""
        *_, second, slots = sorted([1, 1, *self._around(widths).values()])
        most = max(self.colours.values(), default=0)
        while not _without_common_factor(slots, most):
            slots += 1
        if second == 1:
            return slots, 1
        rounding = most > 1  # offsets between two colours above 0 are rounded twice
        for number in range(second, slots):
            fits = second * (math.ceil(slots / number) + rounding) <= slots
            if fits and _without_common_factor(number, most):
                return slots, number
        return slots, slots

    def _around(self, widths: Widths) -> dict[int, int]:
        """Colour -> how many windows go once around the finest-cut axis of it."""
        around: dict[int, int] = {}
        for axis, width in self._cut(self.narrowest or widths).items():
            least = math.ceil(round(self.sizes[axis] / max(1.0, (1 - self.overlap) * width), 9))
            colour = self.colours.get(axis, 0)
            around[colour] = max(least, around.get(colour, 1))
        return around

    def _cut(self, widths: Widths) -> dict[str, int]:
        return {axis: width for axis, width in widths.items() if width < self.sizes[axis]}

    def _slot(self, turned: int, place: int, slots: int) -> tuple[int, int]:
        """Slot and diagonal of the participant at place ``turned``, ``place`` rounds into the cycle.

        Whole groups of P participants fill one diagonal each, from the front; those who are left over fill
        diagonals from the back, -1, -2, ..., as far as they get in each round.
        """
        group, slot = divmod(turned, slots)
        full, rest = divmod(self.participants, slots)
        if group < full:
            return slot, place * full + group
        back, slot = divmod(place * rest + slot, slots)
        return slot, -1 - back

    def _turn(self, turn: int, when: tuple[int, int], axis: str) -> float:
        """How far the slots of an axis are turned, as a share of the axis; when: round and diagonal."""
        if self.starts == "independent":
            return generator(self.seed, "start", *when, axis).random()
        if turn == self.since == 0:
            return 0.0
        start = (self.since,) if self.since else ()
        return generator(self.seed, "turn", *start, turn, axis if self.starts == "designed" else "").random()


def _without_common_factor(number: int, most: int) -> bool:
    """Whether it shares no factor with a difference of colours, the greatest of which is ``most``."""
    return all(math.gcd(number, difference) == 1 for difference in range(2, most + 1))


def colour_axes(axes: Iterable[str], meetings: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Smallest colours, given greedily in order, such that axes that meet in a tensor differ."""
    neighbours: dict[str, set[str]] = {axis: set() for axis in axes}
    for first, second in meetings:
        if first in neighbours and second in neighbours:
            neighbours[first].add(second)
            neighbours[second].add(first)
    colours: dict[str, int] = {}
    for axis, near in neighbours.items():
        taken = {colours[other] for other in near if other in colours}
        colours[axis] = next(c for c in range(len(neighbours)) if c not in taken)
    return colours
