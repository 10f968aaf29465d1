"""``msfusion plan``: what each participant pays and how fast the model is covered, without training."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msfusion.capture import Capture, capture
from msfusion.commands.output import emit, require_positive, table
from msfusion.config import load_axes
from msfusion.core.coverage import Summary, over_rounds
from msfusion.errors import UserError
from msfusion.learn.cost import Cost
from msfusion.learn.objective import Objective
from msfusion.models import build_without_values
from msfusion.report.numbers import count, many, percent, si
from msfusion.runtimes.run import Run
from msfusion.runtimes.setup import Setup

COSTS = ("parameters", "FLOP per step", "memory", "bytes per round")


@dataclass(frozen=True)
class Subject:
    """The model of a plan, without values, and the settings of a run."""

    name: str
    captured: Capture
    example: tuple[Tensor, ...]
    run: Run

    @staticmethod
    def load(name: str, options: Mapping[str, Any], declared: Path | None, run: Run) -> "Subject":
        """Raises UserError where there is no such model."""
        module, example = build_without_values(name, None, options)
        captured = capture(module, example, overrides=load_axes(declared), logits_alone=True)
        return Subject(name, captured, example, run)


def check_counted(settings: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that a plan does not count."""
    for key in settings:
        if key != "twins" and not key.startswith(("contrast.", "train.")):
            raise UserError(
                f"expected twins, contrast.* or train.* for --set of a plan, got {key!r}; "
                "leave it out, or give its option where it has one"
            )


def run(subject: Subject, *, participants: int, rounds: int, json: bool) -> None:
    """Print what each participant pays and how the full model is covered round by round."""
    require_positive(participants=participants, rounds=rounds)
    setup = Setup(
        subject.captured,
        subject.example,
        Objective(),
        subject.run,
        participants=participants,
        device=torch.device("cpu"),
    )
    plans = [setup.widths(number) for number in range(participants)]
    coverage = setup.coverage()
    covered = list(over_rounds(coverage, setup.method.schedule(setup.setting), plans, rounds))
    full = setup.submodels.cost({}, subject.run.train)
    kinds = []
    for number, plan in enumerate(plans):
        if plan not in plans[:number]:
            who = [i for i, other in enumerate(plans) if other == plan]
            kinds.append((who, plan, setup.submodels.cost(plan, subject.run.train, setup.contrast)))
    sizes = {axis: info.size for axis, info in subject.captured.axes.axes.items()}
    data = {
        "model": subject.name,
        "method": subject.run.method,
        "participants": participants,
        "full": asdict(full),
        "plans": [
            {
                "participants": who,
                "cost": asdict(cost),
                "widths": {axis: [width, sizes[axis]] for axis, width in plan.items()},
            }
            for who, plan, cost in kinds
        ],
        "coverage": [asdict(summary) for summary in covered],
        "rounds_to_full_coverage": _first_full(covered),
    }
    rows = [
        ("full model", *costs(full, full)),
        *((_named(who, participants), *costs(c, full)) for who, _, c in kinds),
    ]
    emit(data, table(("cost of", *COSTS), rows), json=json)
    if not json:
        emit({}, _coverage(covered), json=False)


def costs(own: Cost, full: Cost) -> tuple[str, ...]:
    """In the columns of ``COSTS``: each value, and its share of the full model's."""
    return (
        f"{count(own.parameters)} ({percent(own.parameters / full.parameters)})",
        _compared(own.flops_per_step, full.flops_per_step, "FLOP"),
        _compared(own.memory_bytes, full.memory_bytes, "B"),
        _compared(own.bytes_per_round, full.bytes_per_round, "B"),
    )


def _compared(own: int, full: int, unit: str) -> str:
    return f"{si(own, unit)} ({percent(own / full)})"


def _named(who: list[int], participants: int) -> str:
    if len(who) == participants:
        return "each participant"
    shown = ", ".join(map(str, who[:4])) + (", ..." if len(who) > 4 else "")
    return f"participant{'s' * (len(who) > 1)} {shown}"


def _first_full(covered: Iterable[Summary]) -> int | None:
    return next((i + 1 for i, summary in enumerate(covered) if summary.share == 1), None)


def _coverage(covered: list[Summary]) -> object:
    shown = sorted({0, 1, 2, 4, len(covered) // 2 - 1, len(covered) - 1, (_first_full(covered) or 1) - 1})
    rows = [
        (str(i + 1), percent(c.share), str(c.least), f"{c.mean:.2f}", f"{c.variation:.2f}")
        for i, c in enumerate(covered)
        if i in shown
    ]
    out = table(("rounds", "coverage", "least", "mean", "variation"), rows)
    first = _first_full(covered)
    out.caption = (
        f"every parameter trained after {many(first, 'round')}" if first else "not covered in these rounds"
    ) + "; least and mean: how often a parameter was trained; variation: of that number, 0 is even"
    return out
