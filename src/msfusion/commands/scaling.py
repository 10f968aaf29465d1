"""``msfusion plan --scaling``: what a participant pays as participants are added."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from msfusion.commands.output import emit, table
from msfusion.commands.plan import COSTS, Subject, costs
from msfusion.core import widths
from msfusion.core.coverage import Coverage
from msfusion.errors import UserError
from msfusion.learn.methods import Setting, get_method
from msfusion.learn.submodels import SubModels

NUMBERS = (4, 8, 16, 32, 64, 128, 256)
_ROUNDS = 3  # each of which must cover the model


def check_given(part: Mapping[str, Any], numbers: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise UserError for what --scaling would not obey: a participant's part, how many there are over which
    rounds, and settings that change windows or the loss."""
    if part:
        raise UserError(f"expected no --{next(iter(part))} with --scaling, which finds the width itself")
    if numbers:
        raise UserError(
            f"expected no --{next(iter(numbers))} with --scaling, which counts for {NUMBERS[0]} to "
            f"{NUMBERS[-1]} participants, each round by itself; leave it out"
        )
    if wrong := [key for key in settings if not key.startswith("train.")]:
        raise UserError(
            f"expected only train.* for --set with --scaling, which counts no other, got {wrong[0]!r}; "
            "leave it out"
        )


def run(subject: Subject, *, json: bool) -> None:
    """Print what each of N participants pays when its windows are as narrow as covering the full model in
    every round allows; under FedAvg each pays for the full model, whatever N is.

    Raises UserError for a method that has no such windows.
    """
    power = get_method(subject.run.method).scale_power
    submodels = SubModels(subject.captured, subject.example, torch.device("cpu"), power)
    full = submodels.cost({}, subject.run.train)
    rows = [("any, under FedAvg", "1", *costs(full, full))]
    data = []
    for number in NUMBERS:
        divisor, plan = narrowest(subject, number)
        cost = submodels.cost(plan, subject.run.train)
        rows.append((str(number), f"1/{divisor}", *costs(cost, full)))
        data.append({"participants": number, "width": 1 / divisor, "cost": asdict(cost)})
    shown = table(("participants", "width", *COSTS), rows)
    shown.caption = f"least width with which every round covers every parameter, under {subject.run.method}"
    facts = {"model": subject.name, "method": subject.run.method, "full": asdict(full), "scaling": data}
    emit(facts, shown, json=json)


def narrowest(subject: Subject, participants: int) -> tuple[int, dict[str, int]]:
    """The narrowest plan of windows of width 1/k that cover the model in every round, and the least such k.

    An axis of fewer than k units is cut to one of them. Covering takes k windows where no two cut axes meet
    in a tensor, and k^2 where they do, so that k is at most the number of participants.
    """
    cut = get_method(subject.run.method).cut
    if cut is None:
        raise UserError("expected a method that cuts the model for --scaling, got one that trains it whole")
    axes = subject.captured.axes
    fits, too_many = 1, participants + 1
    while too_many - fits > 1:
        divisor = (fits + too_many) // 2
        if covers(subject, widths.clamped(axes, 1 / divisor, cut), participants):
            fits = divisor
        else:
            too_many = divisor
    plan = widths.clamped(axes, 1 / fits, cut)
    while fits > 1 and widths.clamped(axes, 1 / (fits - 1), cut) == plan:
        fits -= 1
    return fits, plan


def covers(subject: Subject, plan: Mapping[str, int], participants: int) -> bool:
    """Whether each of the first rounds trains every parameter."""
    axes = subject.captured.axes
    schedule = get_method(subject.run.method).schedule(Setting(axes, plan, participants, subject.run.seed))
    for round in range(_ROUNDS):
        coverage = Coverage(axes, subject.captured.trained, plan)
        for participant in range(participants):
            coverage.add(schedule.windows(round, participant, plan))
        if coverage.summary().least < 1:
            return False
    return True
