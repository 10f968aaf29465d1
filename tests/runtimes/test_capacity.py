"""Participants that can afford different parts of the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import SIZES, TEST, net, participants, play, same, settings, state
from test_methods import ALL, PARTS

from msfusion.capture import capture
from msfusion.core.overlap import State
from msfusion.core.windows import DoubleShift
from msfusion.errors import UserError
from msfusion.learn.capacity import Capacity, parse_bytes
from msfusion.learn.methods import get_method
from msfusion.learn.objective import Objective
from msfusion.records import read
from msfusion.report import write_report
from msfusion.runtimes.run import Problem
from msfusion.runtimes.setup import Setup
from msfusion.runtimes.simulation import Simulation

MIXED = (1.0, 0.5, 0.25)


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow if ":" in m else ()) for m in ALL])
def test_every_method_takes_participants_that_differ(method: str, tmp_path: Path) -> None:
    """FedAvg trains the full model everywhere; on a small model, all train the smallest."""
    if get_method(method).apart:
        with pytest.raises(UserError, match="participants that all afford the same for msfusion:apart"):
            play(tmp_path, method=method, width=MIXED)
        return
    result = play(tmp_path, method=method, width=MIXED, rounds=2, **PARTS)
    assert result.evaluation.examples == len(TEST)
    shares = [p["share"] for p in read(tmp_path).header["participants"]]
    assert len(shares) == len(SIZES)
    assert shares[3] == shares[0]
    alike = method.partition(":")[0] in ("fedavg", "fedavg-small")
    assert (len(set(shares)) == 1) == alike
    if not alike:
        assert shares[0] > shares[1] > shares[2]
    write_report([tmp_path], tmp_path / "report.html")


def test_a_run_of_participants_that_differ_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = state(play(width=MIXED, rounds=3))
    play(tmp_path, width=MIXED, rounds=2)
    assert same(state(play(tmp_path, width=MIXED, rounds=3, resume=True)), whole)


def test_one_value_in_a_list_is_that_value() -> None:
    assert same(state(play(width=(0.5,))), state(play(width=0.5)))


@pytest.mark.parametrize("given", [{"memory": "5kB"}, {"flops": 6_000.0}])
def test_each_fits_what_it_can_afford(given: dict[str, Any], tmp_path: Path) -> None:
    play(tmp_path, width=None, rounds=1, **given)
    header = read(tmp_path).header
    for p in header["participants"]:
        assert p["share"] < 1
        assert p["memory_bytes"] <= 5_000 or "flops" in given
        assert p["flops_per_step"] <= 6_000 or "memory" in given


def test_a_setting_that_says_nothing_or_too_much() -> None:
    for given in ({}, {"share": 0.5, "memory": "1MB"}, {"width": ()}):
        with pytest.raises(UserError, match="one of width, share, memory, flops"):
            settings(**{"width": None} | given).capacities()
    assert settings(width=None, memory=("1kB", 2000)).capacities() == [
        Capacity(memory=1000),
        Capacity(memory=2000),
    ]
    with pytest.raises(UserError, match="500MB"):
        parse_bytes("much")
    with pytest.raises(UserError, match="fewer bytes than 8 EiB"):
        parse_bytes("9" * 400)


def test_a_width_stands_beside_shares_where_twins_want_widths_that_divide() -> None:
    """5 of 12 units: neither who comes with a share nor who comes again can have a multiple of it."""
    model, example = net(), (participants()[0][:2][0],)
    capacities = (Capacity(share=0.7), Capacity(width=0.4), Capacity(share=0.5))
    setup = Setup(
        capture(model, example),
        example,
        Objective(),
        settings(twins=0.9, width=0.4),
        participants=3,
        device=torch.device("cpu"),
        capacities=capacities,
    )
    assert setup.widths(1) == {"first.out": 5, "second.out": 3} == setup.plan_of(capacities[1])
    for number in (0, 2):
        for plan in (setup.widths(number), setup.plan_of(capacities[number])):
            assert all(size % plan[axis] == 0 for axis, size in (("first.out", 12), ("second.out", 7)))


def test_who_affords_a_plan_need_not_have_it() -> None:
    model, example = net(), (participants()[0][:2][0],)
    setup = Setup(
        capture(model, example),
        example,
        Objective(),
        settings(),
        participants=1,
        device=torch.device("cpu"),
    )
    plan = {"first.out": 12, "second.out": 1}
    cost, whole = setup.submodels.cost(plan, settings().train), setup.submodels.parameters({})
    for enough, less in (
        (Capacity(width=1.0), Capacity(width=0.9)),
        (Capacity(share=(cost.parameters + 0.5) / whole), Capacity(share=(cost.parameters - 0.5) / whole)),
        (Capacity(memory=cost.memory_bytes), Capacity(memory=cost.memory_bytes - 1)),
        (Capacity(flops=cost.flops_per_step), Capacity(flops=cost.flops_per_step - 1)),
    ):
        assert setup.affords(enough, plan)
        assert not setup.affords(less, plan)
        assert enough.covers(enough)
        assert enough.covers(less)
        assert not less.covers(enough)
    assert not Capacity(width=1.0).covers(Capacity(share=0.1))


def test_the_grid_is_that_of_the_narrowest() -> None:
    model = net()
    example = (participants()[0][:2][0],)
    problem = Problem(model, example, participants(), TEST)
    setup = Simulation(problem, settings(width=MIXED), captured=capture(model, example)).setup
    schedule = setup.learner(State(0.0)).schedule
    assert isinstance(schedule, DoubleShift)
    assert setup.setting.narrowest == setup.widths(2)
    epoch = schedule.epoch(setup.widths(0))
    assert epoch == schedule.epoch(setup.widths(2))
    coverage = setup.coverage()
    for round in range(epoch):
        for number in range(len(SIZES)):
            coverage.add(schedule.windows(round, number, setup.widths(number)))
    assert coverage.summary().share == 1
    assert get_method("msfusion").cut == "inner"
