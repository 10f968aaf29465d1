"""The methods: each is a schedule, which axes are cut, what is evaluated, and little else."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from msfusion.core.apart import sub_models
from msfusion.core.axes import AxisMap, Widths
from msfusion.core.widths import Cut
from msfusion.core.windows import (
    Apart,
    DoubleShift,
    Nested,
    OrderedDropout,
    RandomUnits,
    Rolling,
    Schedule,
    Starts,
    Whole,
    colour_axes,
)
from msfusion.errors import UserError

Evaluated = Literal["full", "widest", "small", "own"]
"""Whose score a method reports: the full model's, that of its first units, as many as the widest participant
trains, that of the one small model in it, or the mean over each participant's own small model."""


@dataclass(frozen=True)
class Setting:
    """What a schedule is made from.

    narrowest: axis -> its least width among the participants, for every axis that is cut.
    widest: axis -> its greatest; by default everyone's own.
    overlap: overlap rate of windows that have one.
    since: round in which this rate began.
    twins: whether units have twins.
    """

    axes: AxisMap
    narrowest: Widths
    participants: int
    seed: int
    overlap: float = 0.0
    since: int = 0
    twins: bool = False
    widest: Widths = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Units of every axis that may be cut."""
        return {name: self.axes.axes[name].size for name in self.axes.cuttable}


@dataclass(frozen=True)
class Method:
    """A way to train a model together.

    schedule: setting -> windows of each participant in each round.
    cut: the axes that are cut; None trains the full model everywhere.
    evaluated: whose score is reported.
    scale_power: the scale rule's exponent (core/scale.py).
    contrast: it obeys the setting of the contrastive loss; others train on the task's loss alone.
    overlap: it obeys the settings of the overlap rate; those of others have none.
    twins: it obeys the setting of twins; in others every unit starts and learns on its own.
    momentum: it obeys the setting of server momentum.
    apart: its windows share no unit, and weights between them are 0 (core/apart.py); it obeys the setting of
        complementing one another.
    """

    schedule: Callable[[Setting], Schedule]
    cut: Cut | None = "all"
    evaluated: Evaluated = "full"
    scale_power: float = 1.0
    contrast: bool = False
    overlap: bool = False
    twins: bool = False
    momentum: bool = True
    apart: bool = False
    variants: dict[str, "Method"] = field(default_factory=dict, compare=False)

    @property
    def makes_full(self) -> bool:
        """Whether the full model comes of it, though units that nobody can afford stay as they began."""
        return self.evaluated in ("full", "widest")


def _shifted(starts: Starts) -> Callable[[Setting], Schedule]:
    def schedule(setting: Setting) -> Schedule:
        return DoubleShift(
            sizes=setting.sizes,
            participants=setting.participants,
            seed=setting.seed,
            colours=colour_axes(setting.narrowest, setting.axes.meetings()),
            narrowest=setting.narrowest,
            starts=starts,
            overlap=setting.overlap,
            since=setting.since,
            meet_themselves=setting.axes.meet_themselves(),
            twins=setting.twins,
        )

    return schedule


def _apart(setting: Setting) -> Schedule:
    return Apart(setting.sizes, sub_models(setting.narrowest, setting.axes))


def _msfusion() -> Method:
    base = Method(_shifted("designed"), cut="inner", contrast=True, overlap=True, twins=True)
    return replace(
        base,
        variants={
            "in-step": replace(base, schedule=_shifted("in-step")),
            "independent": replace(base, schedule=_shifted("independent")),
            "residual-cut": replace(base, cut="all"),
            "no-scale": replace(base, scale_power=0.0),
            "no-contrast": replace(base, contrast=False),
            "no-overlap": replace(base, overlap=False),
            "no-twins": replace(base, twins=False),
            "apart": replace(base, schedule=_apart, cut="all", contrast=False, overlap=False, apart=True),
        },
    )


def _with_general_variants(method: Method) -> Method:
    """The same, and what every method whose participants merge anything can leave out, or cut in the order in
    which msfusion cuts."""
    if method.evaluated == "own":
        return method
    general = {"no-momentum": replace(method, momentum=False)}
    if method.cut == "all":
        general["inner-first"] = replace(method, cut="inner")
    return replace(method, variants={**method.variants, **general})


_NAMED: dict[str, Method] = {
    "msfusion": _msfusion(),
    "fedrolex": Method(lambda s: Rolling(s.sizes)),
    "heterofl": Method(lambda s: Nested(s.sizes), evaluated="widest"),
    "fjord": Method(lambda s: OrderedDropout(s.sizes, s.seed, s.widest), evaluated="widest", scale_power=0.0),
    "random": Method(lambda s: RandomUnits(s.sizes, s.seed)),
    "fedavg": Method(lambda s: Whole(), cut=None),
    "fedavg-small": Method(lambda s: Nested(s.sizes), evaluated="small", scale_power=0.5),
    "standalone": Method(lambda s: Nested(s.sizes), evaluated="own", scale_power=0.5),
}
METHODS = {name: _with_general_variants(method) for name, method in _NAMED.items()}


def get_method(name: str) -> Method:
    """The method of a name such as ``fedrolex`` or ``msfusion:in-step`` (a part of it switched off)."""
    base, colon, variant = name.partition(":")
    known = [*METHODS, *(f"{m}:{v}" for m, method in METHODS.items() for v in method.variants)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise UserError(
            f"expected a method out of {', '.join(METHODS)}, or a variant as msfusion:in-step, got {name!r}; "
            f"did you mean {near!r}?"
        )
    return METHODS[base].variants[variant] if colon else METHODS[base]


def check_makes_full(name: str) -> None:
    """Raise UserError for a method of which no full model comes."""
    if not get_method(name).makes_full:
        raise UserError(
            f"expected a run of a method that trains the full model, got {name}, which trains small ones; "
            "take another method"
        )
