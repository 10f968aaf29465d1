"""On a GPU: participants that train at once beside one by one, and the share of the device's speed reached.

Rounds of both take turns in one process. The device's speed is that of one large matrix product in the same
precision, measured in the same run: what arithmetic can reach there, and no number of a data sheet.

    python benchmarks/gpu.py [--rounds 7] [--models resnet18,gpt] [--precision bf16]
"""

import argparse
import dataclasses
import statistics
import sys
from functools import partial
from typing import Literal

import torch
from machine import machine, seconds, spread
from throughput import CASES, PARTICIPANTS, STEPS, examples

from msfusion.learn.carried import Carried
from msfusion.learn.round import play
from msfusion.models import build
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.simulation import Simulation

Precision = Literal["float32", "bf16"]
SIZE = 8192  # of the square matrices
LARGE: dict[str, tuple[dict[str, object], tuple[int, ...]]] = {
    "resnet18": ({"width": 64}, (3, 32, 32)),
    "gpt": ({"layers": 6, "heads": 6, "embed": 384, "block": 256}, (256,)),
}
"""At the usual widths; the table for the CPU has smaller ones."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default="mlp,cnn,resnet18,gpt,vit")
    parser.add_argument("--compile", action="store_true", help="what trains at once alone")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("expected a GPU, which this benchmark is about, found none; run it where there is one")
    fastest = peak(torch.bfloat16 if arguments.precision == "bf16" else torch.float32)
    print(
        f"{machine()}; {PARTICIPANTS} participants, {STEPS} steps of 32 examples, {arguments.precision}"
        + (", compiled" if arguments.compile else "")
    )
    print(f"a matrix product reaches {fastest / 1e12:.1f} TFLOP/s\n")
    print("| model | parameters each | ms per round, one by one | at once | ratio | of a product's speed |")
    print("|---|---|---|---|---|---|")
    for name in arguments.models.split(","):
        print(row(name, arguments.rounds, arguments.precision, arguments.compile, fastest), flush=True)


def row(name: str, rounds: int, precision: Precision, compile: bool, fastest: float) -> str:
    alone = simulation(name, precision, Run(batched="off"))
    together = simulation(name, precision, Run(batched="on", compile=compile))
    times = [[seconds(partial(round_of, one)) for one in (alone, together)] for _ in range(rounds + 1)]
    pairs = times[1:]  # the first one warms up
    columns = [spread([1000 * pair[i] for pair in pairs], ".1f") for i in (0, 1)]
    ratio = spread([first / second for first, second in pairs])
    one = together.participants[0]
    cost = together.learner.cost(one, one.widths)
    work = cost.flops_per_step * STEPS * PARTICIPANTS
    share = work / statistics.median(pair[1] for pair in pairs) / fastest
    return f"| {name} | {cost.parameters:,} | {columns[0]} | {columns[1]} | {ratio} | {share:.1%} |"


def simulation(name: str, precision: Precision, run: Run) -> Simulation:
    options, shape, share, train = CASES[name]
    options, shape = LARGE.get(name, (options, shape))
    torch.manual_seed(0)
    data = [examples(name, shape, number) for number in range(PARTICIPANTS)]
    train = dataclasses.replace(train, precision=precision)
    run = dataclasses.replace(run, share=share, device="cuda", train=train)
    x, _ = data[0].batch(torch.arange(2))
    return Simulation(Problem(build(name, None, options)[0], (x,), data, data[0]), run)


def round_of(made: Simulation) -> None:
    play(0, made.participants, made.learner, made.store, 1.0, Carried())
    torch.cuda.synchronize()


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    first, second = (torch.randn(SIZE, SIZE, device="cuda", dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.mm(first, second)
        torch.cuda.synchronize()

    product()
    return 2 * SIZE**3 / min(seconds(product) for _ in range(5))


if __name__ == "__main__":
    main()
