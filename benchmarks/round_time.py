"""Time of a round against the width of the sub-models and the number of participants.

The curves: arithmetic per participant falls with the width until what a step launches, which does not depend
on the width, takes longer than what it computes; a round grows with those who take part, not with all.

    python benchmarks/round_time.py [--rounds 5]
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise

import torch
from machine import machine
from throughput import examples

from msfusion.learn.local import Train
from msfusion.models import build
from msfusion.records import Round
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.simulation import Simulation

WIDTHS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
NUMBERS = ((8, 1.0), (32, 1.0), (128, 1.0), (128, 8 / 128), (1024, 8 / 1024))
TRAIN = Train(batch=16, steps=4)
RUN = Run(rounds=10**6, evaluate_every=10**9, workers=1, train=TRAIN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(machine())
    print(f"ResNet-18 of width 64 on 16x16, every axis cut, {TRAIN.steps} steps of {TRAIN.batch} examples\n")
    print("| width | parameters each | MFLOP per step | ms of processor time per step | MFLOP per ms |")
    print("|---|---|---|---|---|")
    for width in WIDTHS:
        print(by_width(width, rounds), flush=True)
    print("\nThe demo's model at a share of 0.3\n")
    print("| participants | of whom train | ms of processor time per round | per participant that trains |")
    print("|---|---|---|---|")
    for number, sample in NUMBERS:
        print(by_number(number, sample, rounds), flush=True)


def by_width(width: float, rounds: int) -> str:
    run = dataclasses.replace(RUN, width=width, method="msfusion:residual-cut")
    made = simulation("resnet18", {"width": 64}, (3, 16, 16), 2, run)
    times = round_times(made, rounds)
    one = made.participants[0]
    cost = made.learner.cost(one, one.widths)
    step = 1000 * statistics.median(times) / 2 / TRAIN.steps
    flops = cost.flops_per_step / 1e6
    return f"| {width:g} | {cost.parameters:,} | {flops:,.0f} | {step:.1f} | {flops / step:,.1f} |"


def by_number(number: int, sample: float, rounds: int) -> str:
    options = {"channels": 1, "image": 8}
    made = simulation("cnn", options, (1, 8, 8), number, dataclasses.replace(RUN, share=0.3, sample=sample))
    times = round_times(made, rounds)
    training = len(made.setup.attendance.present(0, made.participants))
    median = 1000 * statistics.median(times)
    return f"| {number:,} | {training} | {median:,.0f} | {median / training:.1f} |"


def simulation(
    name: str, options: Mapping[str, object], shape: tuple[int, ...], participants: int, run: Run
) -> Simulation:
    torch.manual_seed(0)
    data = examples(name, shape, 0)
    x, _ = data.batch(torch.arange(2))
    return Simulation(Problem(build(name, None, options)[0], (x,), [data] * participants, data), run)


class Enough(Exception):
    """As many rounds as wanted."""


def round_times(made: Simulation, rounds: int) -> list[float]:
    """Processor time of every round, without the first."""
    marks: list[float] = []

    def watch(record: Round) -> None:
        marks.append(time.process_time())
        if len(marks) > rounds:
            raise Enough

    with suppress(Enough):
        made.run(watch=watch)
    return [b - a for a, b in pairwise(marks)]


if __name__ == "__main__":
    main()
