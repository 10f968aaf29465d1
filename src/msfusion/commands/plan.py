"""``msfusion plan``: cost and coverage, no training."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msfusion.capture import Capture, capture
from msfusion.commands.output import emit, require_positive, table
from msfusion.config import load_axes
from msfusion.core import widths
from msfusion.core.coverage import Coverage, Summary, over_rounds
from msfusion.errors import UserError
from msfusion.learn.cost import Cost, cost
from msfusion.learn.local import Train
from msfusion.learn.methods import Method, Setting, get_method
from msfusion.models import build_without_values
from msfusion.report.numbers import count, many, percent, si
from msfusion.runtimes.run import Run
from msfusion.runtimes.setup import plan_of
from msfusion.settings import validated

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, base in (("B", 1000), ("iB", 1024), ("", 1000))
}


@dataclass(frozen=True)
class Capacity:
    """What a participant can afford: exactly one of them."""

    width: float | None = None
    share: float | None = None
    memory: str | None = None


def run(
    model: str,
    options: Mapping[str, Any],
    declared: Path | None,
    *,
    participants: int,
    capacity: Capacity,
    rounds: int,
    method: str,
    seed: int,
    batch: int,
    optimizer: str,
    json: bool,
) -> None:
    """Print what each participant pays and how the full model is covered round by round."""
    require_positive(participants=participants, rounds=rounds)
    train = validated(Train, {"batch": batch, "optimizer": optimizer})
    module, example = build_without_values(model, None, options)
    captured = capture(module, example, overrides=load_axes(declared))
    parameters = [name for name, _ in module.named_parameters()]
    chosen = get_method(method)

    def price(plan: Mapping[str, int]) -> Cost:
        return cost(captured.narrow(plan), example, train)

    plan = _plan(captured, parameters, chosen, capacity, price)
    schedule = chosen.schedule(Setting(captured.axes, tuple(plan), participants, seed))
    coverage = Coverage(captured.axes, parameters, plan)
    covered = list(over_rounds(coverage, schedule, [plan] * participants, rounds))
    full, own = price({}), price(plan)
    data = {
        "model": model,
        "method": method,
        "participants": participants,
        "full": asdict(full),
        "participant": asdict(own),
        "widths": {axis: [width, captured.axes.axes[axis].size] for axis, width in plan.items()},
        "coverage": [asdict(summary) for summary in covered],
        "rounds_to_full_coverage": _first_full(covered),
    }
    emit(data, _costs(full, own), json=json)
    if not json:
        emit({}, _coverage(covered), json=False)


def _plan(
    captured: Capture,
    parameters: list[str],
    method: Method,
    capacity: Capacity,
    price: Callable[[Mapping[str, int]], Cost],
) -> dict[str, int]:
    given = [name for name, value in asdict(capacity).items() if value is not None]
    if len(given) != 1:
        raise UserError(f"expected one of --width, --share and --memory, got {', '.join(given) or 'none'}")
    if capacity.memory is None:
        return plan_of(captured.axes, parameters, method, Run(width=capacity.width, share=capacity.share))
    limit = parse_bytes(capacity.memory)
    if method.cut is None:
        raise UserError("expected a method that cuts the model for --memory, got one that trains it whole")
    return widths.largest(
        captured.axes, lambda plan: price(plan).memory_bytes <= limit, method.cut, f"{limit} bytes of memory"
    )


def parse_bytes(text: str) -> int:
    """``500MB`` or ``2GiB`` or plain bytes."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?i?B?)\s*", text)
    unit = match[2].replace("k", "K") if match else ""
    if not match or unit not in _UNITS:
        raise UserError(f"expected bytes such as 500000000, 500MB or 2GiB, got {text!r}")
    return int(float(match[1]) * _UNITS[unit])


def _first_full(covered: list[Summary]) -> int | None:
    return next((i + 1 for i, summary in enumerate(covered) if summary.share == 1), None)


def _costs(full: Cost, own: Cost) -> object:
    share = own.parameters / full.parameters
    rows = [
        (
            "parameters",
            count(full.parameters),
            count(own.parameters),
            percent(share),
        ),
        _compared("FLOP per step", full.flops_per_step, own.flops_per_step, "FLOP"),
        _compared("memory", full.memory_bytes, own.memory_bytes, "B"),
        _compared("bytes per round", full.bytes_per_round, own.bytes_per_round, "B"),
    ]
    return table(("cost of a participant", "full model", "sub-model", "share"), rows)


def _compared(name: str, full: int, own: int, unit: str) -> tuple[str, str, str, str]:
    return name, si(full, unit), si(own, unit), percent(own / full)


def _coverage(covered: list[Summary]) -> object:
    shown = sorted({0, 1, 2, 4, len(covered) // 2 - 1, len(covered) - 1, (_first_full(covered) or 1) - 1})
    rows = [
        (str(i + 1), percent(c.share), str(c.least), f"{c.mean:.2f}", f"{c.variation:.2f}")
        for i, c in enumerate(covered)
        if i in shown
    ]
    columns = ("rounds", "coverage", "least often", "mean", "variation")
    out = table(columns, rows)
    first = _first_full(covered)
    out.caption = (
        f"every parameter trained after {many(first, 'round')}" if first else "not covered in these rounds"
    )
    return out
