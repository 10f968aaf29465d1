"""What a participant can afford, and the width plan that follows from it."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass

from msfusion.core import widths
from msfusion.core.axes import AxisMap, Widths
from msfusion.core.widths import Cut
from msfusion.errors import UserError
from msfusion.learn.cost import Cost

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, base in (("B", 1000), ("iB", 1024), ("", 1000))
}

_MOST = 2.0**63  # what a message can say


@dataclass(frozen=True)
class Capacity:
    """What a participant can afford: exactly one of these.

    width: of every axis that the method cuts.
    share: of the full model's parameters.
    memory: bytes while it trains, as ``cost`` counts them.
    flops: floating-point operations per optimizer step.
    """

    width: float | None = None
    share: float | None = None
    memory: int | None = None
    flops: float | None = None

    def __str__(self) -> str:
        """As a node configuration states it."""
        stated = {name: value for name, value in asdict(self).items() if value is not None}
        return " ".join(f"{name}={value}" for name, value in stated.items())

    def plan(
        self,
        axes: AxisMap,
        parameters: Iterable[str],
        cut: Cut,
        price: Callable[[Widths], Cost],
        *,
        kinds: Widths | None = None,
    ) -> dict[str, int]:
        """The widest plan that fits, inner axes first; raises UserError where none does.

        parameters: names of the full model's parameters.
        price: what a sub-model of these widths costs the participant.
        kinds: as for ``widths.largest``; a ``width`` that is asked for is taken as it is.
        """
        if self.width is not None:
            return widths.at_width(axes, self.width, cut)
        if self.share is not None:
            return widths.for_share(axes, parameters, self.share, cut, kinds=kinds)
        fits = self._pays(price)
        if self.memory is not None:
            wanted = f"{self.memory} bytes of memory"
            return widths.largest(
                axes, fits, cut, wanted, lambda plan: f"{price(plan).memory_bytes} bytes", kinds=kinds
            )
        wanted = f"{self.flops:g} FLOPs per step"
        return widths.largest(
            axes, fits, cut, wanted, lambda plan: f"{price(plan).flops_per_step} FLOPs", kinds=kinds
        )

    def affords(
        self,
        plan: Widths,
        axes: AxisMap,
        parameters: Iterable[str],
        cut: Cut,
        price: Callable[[Widths], Cost],
    ) -> bool:
        """Whether a plan fits, which need not be the widest that does; the rest as for ``plan``."""
        if self.width is not None:
            own = widths.at_width(axes, self.width, cut)
            return all(own.get(axis, axes.axes[axis].size) >= units for axis, units in plan.items())
        if self.share is not None:
            return widths.within_share(axes, parameters, self.share)(plan)
        return self._pays(price)(plan)

    def covers(self, other: "Capacity") -> bool:
        """Whether it is of the same kind as another one, and not less."""
        return all(
            (own is None and least is None) or (own is not None and least is not None and own >= least)
            for own, least in zip(astuple(self), astuple(other), strict=True)
        )

    def _pays(self, price: Callable[[Widths], Cost]) -> Callable[[Widths], bool]:
        """Whether it holds what a plan costs, in memory or FLOPs."""
        if (memory := self.memory) is not None:
            return lambda plan: price(plan).memory_bytes <= memory
        assert self.flops is not None
        flops = self.flops
        return lambda plan: price(plan).flops_per_step <= flops


def parse_bytes(text: str | int) -> int:
    """``500MB`` or ``2GiB`` or plain bytes."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?i?B?)\s*", str(text))
    unit = match[2].replace("k", "K") if match else ""
    if not match or unit not in _UNITS:
        raise UserError(f"expected bytes such as 500000000, 500MB or 2GiB, got {text!r}")
    number = float(match[1]) * _UNITS[unit]
    if number >= _MOST:
        raise UserError(f"expected fewer bytes than 8 EiB, got {text!r}")
    return int(number)
