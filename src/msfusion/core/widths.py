"""Width plans: how many units of each axis a participant trains, found from what it can afford."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Literal

from msfusion.core.axes import AxisMap, Widths
from msfusion.errors import UserError

Cut = Literal["inner", "all"]
"""Which axes are cut: those inside blocks, or the residual streams between blocks as well."""


def at_width(axes: AxisMap, width: float, cut: Cut) -> dict[str, int]:
    """Every axis that ``cut`` names at the same width: so many of its units, rounded half up.

    Raises UserError where the width is outside (0, 1], where nothing can be cut, or where a window rounds
    to nothing.
    """
    if not 0 < width <= 1:
        raise UserError(f"expected a width in (0, 1], got {width}")
    sizes = {axis: axes.axes[axis].size for axis in _axes_to_cut(axes, cut)}
    axis, size = min(sizes.items(), key=lambda item: item[1])
    if _units(width, size) < 1:
        least = 0.505 / size  # a little more than one half: the printed digits must suffice as well
        raise UserError(
            f"expected a width that leaves at least one unit of every axis, got {width}, with which the "
            f"{size} units of axis {axis!r} round to none; take at least {least:.3g}, or give a share"
        )
    return {axis: _units(width, size) for axis, size in sizes.items()}


def clamped(axes: AxisMap, width: float, cut: Cut) -> dict[str, int]:
    """As ``at_width``, but with at least one unit of every axis."""
    return _clamped(axes, _axes_to_cut(axes, cut), width)


def largest(
    axes: AxisMap,
    fits: Callable[[dict[str, int]], bool],
    cut: Cut,
    wanted: str,
    takes: Callable[[dict[str, int]], str],
    *,
    kinds: Widths | None = None,
) -> dict[str, int]:
    """The widest plan that fits: inner axes are cut first, to the width of the stream they meet, and from
    there on the streams as well, all in the same proportion (ours; results/comparison).

    fits: whether a plan can be afforded; must be monotone in the widths.
    wanted, takes: what the plan had to fit, and what a plan would have fitted, for the message of the
    UserError when none does.
    kinds: only widths that divide their axes, and are multiples of these, as twins want them: a window then
    holds as many units of one kind as of the other. Where even these do not fit, or do not divide their axes
    themselves, as a width that was asked for need not, only the first. None for any widths.
    """
    balance = _balance(axes)
    plan = _widest(lambda width: _balanced(axes, width, cut, balance), fits)
    if plan is None:
        raise UserError(
            "expected a capacity that holds one unit of every axis, which takes"
            f" {takes(_clamped(axes, axes.cuttable, 0.0))}, got {wanted}: give participants more, or take a"
            " model whose axes have more units (`msfusion axes` shows them)"
        )
    if kinds is None:
        return plan
    divide = all(axes.axes[axis].size % width == 0 for axis, width in kinds.items())
    if kinds and not (divide and fits(dict(kinds))):  # of whoever affords less, kinds have another number
        kinds = {}
    found = _snapped(axes, plan, fits, kinds) if cut == "all" else _dividing(axes, plan, fits, kinds, balance)
    return found if not kinds or fits(found) else _widened(axes, kinds, fits)


def for_share(
    axes: AxisMap, parameters: Iterable[str], share: float, cut: Cut, *, kinds: Widths | None = None
) -> dict[str, int]:
    """The widest plan with at most ``share`` of the full model's parameters.

    kinds: as for ``largest``.
    """
    if not 0 < share <= 1:
        raise UserError(f"expected a share of the parameters in (0, 1], got {share}")
    names = list(parameters)
    whole = parameter_count(axes, names, {})

    def takes(plan: Widths) -> str:
        return f"a share of {math.ceil(1000 * parameter_count(axes, names, plan) / whole) / 1000}"

    return largest(
        axes,
        within_share(axes, names, share),
        cut,
        f"a share of {share} of the parameters",
        takes,
        kinds=kinds,
    )


def within_share(axes: AxisMap, parameters: Iterable[str], share: float) -> Callable[[Widths], bool]:
    """Whether a plan has at most this share of the full model's parameters."""
    names = list(parameters)
    most = share * parameter_count(axes, names, {})
    return lambda plan: parameter_count(axes, names, plan) <= most


def _units(width: float, size: int) -> int:
    """Units of an axis at a width: ``width * size``, rounded half up, so that no plan exists at a single
    point between two others, as it would with half to even; to nine digits, as the widths of streams are
    quotients."""
    return math.floor(round(width * size, 9) + 0.5)


def _clamped(axes: AxisMap, names: Iterable[str], width: float) -> dict[str, int]:
    return {name: max(1, _units(width, axes.axes[name].size)) for name in names}


def parameter_count(axes: AxisMap, parameters: Iterable[str], widths: Widths) -> int:
    """Number of parameters of a sub-model."""
    return sum(math.prod(axes.shape(name, widths)) for name in parameters)


def _axes_to_cut(axes: AxisMap, cut: Cut) -> list[str]:
    names = [a for a in axes.cuttable if cut == "all" or not axes.axes[a].residual] or list(axes.cuttable)
    if not names:
        raise nothing_to_cut(axes)
    return names


def nothing_to_cut(axes: AxisMap) -> UserError:
    """What to say of a model none of whose axes may be cut: which operations pinned what."""
    pinned: dict[str, list[str]] = {}
    for place, reason in axes.pinned.items():
        pinned.setdefault(reason, []).append(place)
    why = [f"{reason} pins {few(places)}" for reason, places in pinned.items()]
    why += [f"{name} stays whole: {info.whole}" for name, info in axes.axes.items() if info.whole]
    return UserError(
        f"expected a model with an axis that can be cut, got none: {'; '.join(why) or 'no parameters'};"
        " return only what the loss reads, or replace these operations (docs/any-model.md)"
    )


def few(places: Sequence[str]) -> str:
    """The first four of some names, and how many there are beside them."""
    rest = len(places) - 4
    return ", ".join(places[:4]) + (f" and {rest} more" if rest > 0 else "")


def _balance(axes: AxisMap) -> float:
    """The width at which no inner axis has more units than the widest stream that it meets, at most 1: 1/4
    for a transformer, whose inner layers are four times as wide, 1 for a ResNet."""
    cuttable = {name: axes.axes[name] for name in axes.cuttable}
    ratios: dict[str, float] = {}
    for pair in axes.meetings():
        for stream, inner in (pair, pair[::-1]):
            if {stream, inner} <= cuttable.keys() and cuttable[stream].residual > cuttable[inner].residual:
                ratio = cuttable[stream].size / cuttable[inner].size
                ratios[inner] = max(ratio, ratios.get(inner, 0.0))
    return min([1.0, *ratios.values()])


def _balanced(axes: AxisMap, width: float, cut: Cut, balance: float) -> dict[str, int]:
    """What is cut at a width; where that is inner axes, the streams at its ratio to the balance."""
    inner = _axes_to_cut(axes, cut)
    streams = _clamped(axes, [axis for axis in axes.cuttable if axis not in inner], min(1.0, width / balance))
    narrowed = {axis: units for axis, units in streams.items() if units < axes.axes[axis].size}
    return _clamped(axes, inner, width) | narrowed


def _widest(
    plan: Callable[[float], dict[str, int]], fits: Callable[[dict[str, int]], bool]
) -> dict[str, int] | None:
    """Bisection over the width that plans are made of; None where none fits."""
    if fits(plan(1.0)):
        return plan(1.0)
    if not fits(plan(0.0)):
        return None
    low, high = 0.0, 1.0
    while plan(low) != plan(high) and high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(plan(middle)) else (low, middle)
    return plan(low)


def _dividing(
    axes: AxisMap,
    plan: dict[str, int],
    fits: Callable[[dict[str, int]], bool],
    kinds: Widths,
    balance: float,
) -> dict[str, int]:
    """The plan with widths that divide their axes: the streams get the next such width above or below, that
    beside which the inner axes come closer to the balance, of those with which the plan fits. Wider by a
    factor of up to e counts less than as much narrower, wider than that more (docs/log.md, 2026-11-26, wide
    insides)."""
    streams = {axis: axes.axes[axis].size for axis in plan if axes.axes[axis].residual}
    inner = {axis: axes.axes[axis].size for axis in plan if axis not in streams}
    if not streams or not inner:
        return _snapped(axes, plan, fits, kinds)

    def beside(parts: int) -> dict[str, int] | None:
        fixed = {axis: size // parts for axis, size in streams.items()} if parts > 1 else {}
        return _widest(lambda width: fixed | _clamped(axes, inner, width), fits)

    def off(parts: int) -> float:
        wider = math.log(_share(found[parts], inner) * parts / balance)
        return wider**2 if wider > 0 else -wider

    parts = math.gcd(*(size // _kinds(axis, size, kinds) for axis, size in streams.items()))
    near = _parts_near(_share(plan, streams), parts)
    found = {parts: wide for parts in near if (wide := beside(parts)) is not None}
    for parts in sorted(found, key=off):
        if fits(snapped := _snapped(axes, found[parts], fits, kinds)):
            return snapped
    return _snapped(axes, plan, fits, kinds)


def _kinds(axis: str, size: int, kinds: Widths) -> int:
    """Of how many units the widths of an axis are multiples; where others leave it whole, of all."""
    return kinds.get(axis, size) if kinds else 1


def _share(plan: Widths, sizes: Mapping[str, int]) -> float:
    """Units in the windows of some axes, of all their units."""
    return sum(plan[axis] for axis in sizes) / sum(sizes.values())


def _parts_near(share: float, whole: int) -> list[int]:
    """The numbers that divide ``whole`` whose reciprocals are next to a share, above and below."""
    parts = [k for k in range(1, whole + 1) if whole % k == 0]
    above = [k for k in parts if 1 / k >= share]
    below = [k for k in parts if 1 / k <= share]
    return sorted({*above[-1:], *below[:1]})


def _snapped(
    axes: AxisMap, plan: dict[str, int], fits: Callable[[dict[str, int]], bool], kinds: Widths
) -> dict[str, int]:
    """The plan with every width cut down to one that divides its axis and is a multiple of its kinds, and
    then those widened to the next such width for which that fits, the narrowest for the size of its axis
    first."""
    sizes = {axis: axes.axes[axis].size for axis in plan}
    allowed = {axis: _multiples(_kinds(axis, size, kinds), size) for axis, size in sizes.items()}
    below = {
        axis: max([w for w in allowed[axis] if w <= width] or allowed[axis][:1])
        for axis, width in plan.items()
    }
    above = {axis: min(w for w in allowed[axis] if w >= width) for axis, width in plan.items()}
    for axis in sorted(plan, key=lambda axis: below[axis] / sizes[axis]):
        if fits(wider := {**below, axis: above[axis]}):
            below = wider
    return below


def _widened(axes: AxisMap, kinds: Widths, fits: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """From a window with one unit of each kind on, as wide as fits: the narrowest for the size of its axis
    first."""
    plan, growing = dict(kinds), list(kinds)
    while growing:
        axis = min(growing, key=lambda axis: plan[axis] / axes.axes[axis].size)
        multiples = _multiples(kinds[axis], axes.axes[axis].size)
        wider = [{**plan, axis: width} for width in multiples if width > plan[axis]][:1]
        if wider and fits(wider[0]):
            plan = wider[0]
        else:
            growing.remove(axis)
    return plan


@cache
def _multiples(kinds: int, size: int) -> list[int]:
    """The multiples of ``kinds`` that divide the size of an axis, ascending."""
    return [width for width in range(kinds, size + 1, kinds) if size % width == 0]
