"""Examples per second of a simulation, beside a bare PyTorch loop over the same steps at the same shapes.

The bare loop does forward, loss, backward and optimizer step of a module as wide as a participant's
sub-model, on batches that lie ready, and nothing else: no windows, no data, no seeds, no merge, no records.
Rounds of the simulation and of the loop take turns in one process; the simulation's time is all that passes
between two of its rounds, evaluation off. A ratio of 1 would mean that everything else is free. It may be
more: what has trained for a thousand steps on a CPU runs without Python, and the loop does not
(learn/scripts.py). The rounds until then do not count. The loop's images lie in memory as the simulation has
them (learn/memory_layout.py), with ``--plain`` as PyTorch does.

    python benchmarks/throughput.py [--rounds 9] [--models mlp,cnn] [--device cpu] [--batched on --compile]
        [--no-script] [--plain]
"""

import argparse
import copy
import dataclasses
import time
from dataclasses import dataclass

import torch
from machine import machine, spread
from torch import nn
from torch.nn import functional as F

from msfusion.data.examples import Examples, LabelledImages, TokenBlocks
from msfusion.learn.local import Train
from msfusion.learn.memory_layout import layout_for
from msfusion.models import build
from msfusion.records import Round
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.simulation import Simulation

PARTICIPANTS, EXAMPLES, STEPS = 10, 500, 10
WARM_UP = 1000 // (PARTICIPANTS * STEPS) + 1  # rounds
SGD = Train(batch=32, steps=STEPS)
ADAMW = Train(optimizer="adamw", lr=1e-3, batch=32, steps=STEPS, clip=1.0)
CASES: dict[str, tuple[dict[str, object], tuple[int, ...], float, Train]] = {
    "mlp": ({"inputs": 64, "hidden": [256, 256]}, (1, 8, 8), 0.25, SGD),
    "cnn": ({"channels": 1, "image": 8}, (1, 8, 8), 0.3, SGD),  # the demo's
    "resnet18": ({"width": 32}, (3, 32, 32), 0.25, SGD),
    "gpt": ({"layers": 4, "heads": 8, "embed": 256, "block": 64}, (64,), 0.25, ADAMW),
    "vit": ({"layers": 4, "heads": 4, "embed": 128}, (3, 32, 32), 0.25, ADAMW),
}
"""Model -> options, shape of an example, share of the parameters, local training: as in the presets, with
ResNet-18 at half of its usual width so that a repetition takes seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batched", default="auto", choices=["auto", "on", "off"])
    parser.add_argument(
        "--compile", action="store_true", help="the simulation alone; the loop stays as it is"
    )
    parser.add_argument("--no-script", action="store_true", help="as in the rounds that do not count")
    parser.add_argument("--plain", action="store_true", help="the loop's images as PyTorch lays them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{machine()}; {PARTICIPANTS} participants, {STEPS} steps of 32 examples, batched {arguments.batched}"
        + (", compiled" if arguments.compile else "")
        + (", no scripts" if arguments.no_script else "")
        + (", a plain loop" if arguments.plain else "")
    )
    print()
    print("| model | parameters each | examples/s, simulation | bare loop | ratio | of processor time |")
    print("|---|---|---|---|---|---|")
    run = Run(
        evaluate_every=10**9,
        workers=1,
        device=arguments.device,
        batched=arguments.batched,
        compile=arguments.compile,
        script=not arguments.no_script,
    )
    for name in arguments.models.split(","):
        print(row(name, arguments.rounds, run, plain=arguments.plain), flush=True)


def row(name: str, rounds: int, run: Run, *, plain: bool) -> str:
    options, shape, share, train = CASES[name]
    torch.manual_seed(0)
    data = [examples(name, shape, number) for number in range(PARTICIPANTS)]
    x, _ = data[0].batch(torch.arange(2))
    run = dataclasses.replace(run, share=share, rounds=WARM_UP + rounds + 1, train=train)
    simulation = Simulation(Problem(build(name, None, options)[0], (x,), data, data[0]), run)
    loop = Bare(simulation, data, plain)
    ours: list[Clock] = []
    bare: list[Clock] = []
    began, rounds_done = Clock.now(), 0

    def watch(record: Round) -> None:
        nonlocal began, rounds_done
        rounds_done += 1
        if rounds_done >= WARM_UP:
            ours.append(Clock.now() - began)
            bare.append(loop.round())
        began = Clock.now()

    simulation.run(watch=watch)
    pairs = list(zip(ours, bare, strict=True))[1:-1]  # the first warms up the loop, the last evaluates
    work = PARTICIPANTS * STEPS * train.batch
    speeds = [spread([work / pair[i].wall for pair in pairs], ",.0f") for i in (0, 1)]
    wall = spread([b.wall / o.wall for o, b in pairs])
    processor = spread([b.processor / o.processor for o, b in pairs])
    parameters = simulation.setup.submodels.parameters(simulation.participants[0].widths)
    return f"| {name} | {parameters:,} | {speeds[0]} | {speeds[1]} | {wall} | {processor} |"


@dataclass(frozen=True)
class Clock:
    """Seconds, and seconds of all processors for this process, which other processes hardly change."""

    wall: float
    processor: float

    @staticmethod
    def now() -> "Clock":
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Clock(time.perf_counter(), time.process_time())

    def __sub__(self, other: "Clock") -> "Clock":
        return Clock(self.wall - other.wall, self.processor - other.processor)


def examples(name: str, shape: tuple[int, ...], number: int) -> Examples:
    draw = torch.Generator().manual_seed(number)
    if name == "gpt":
        tokens = torch.randint(65, (EXAMPLES + shape[0],), generator=draw).to(torch.uint8)
        return TokenBlocks(tokens, 0, len(tokens), shape[0])
    images = torch.randint(256, (EXAMPLES, *shape), generator=draw, dtype=torch.uint8)
    labels = torch.randint(10, (EXAMPLES,), generator=draw)
    mean, std = torch.full((shape[0], 1, 1), 127.0), torch.full((shape[0], 1, 1), 74.0)
    return LabelledImages(images, labels, torch.arange(EXAMPLES), mean, std)


def stock(module: nn.Module, train: Train) -> torch.optim.Optimizer:
    """PyTorch's own optimizer, the fastest of its implementations."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), train.lr, momentum=train.momentum, fused=True)
    return torch.optim.AdamW(module.parameters(), train.lr, weight_decay=train.weight_decay, fused=True)


class Bare:
    """The loop that does nothing else."""

    def __init__(self, simulation: Simulation, data: list[Examples], plain: bool) -> None:
        one, self.train = simulation.participants[0], simulation.config.train
        learner, device = simulation.learner, simulation.setup.submodels.device
        windows = learner.windows(0, one)
        values = simulation.store.pull(0, windows)
        self.module: nn.Module = copy.deepcopy(simulation.setup.submodels.load(windows, values)).train()
        self.optimizer = stock(self.module, self.train)
        drawn = [data[0].batch(torch.arange(self.train.batch) + step) for step in range(STEPS)]
        own = layout_for(self.module, drawn[0][0].to(device))
        layout = torch.preserve_format if plain else own
        self.batches = [(x.to(device, memory_format=layout), y.to(device)) for x, y in drawn]

    def round(self) -> Clock:
        start = Clock.now()
        for _ in range(PARTICIPANTS):
            for x, y in self.batches:
                self.step(x, y)
        return Clock.now() - start

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.module(x).flatten(0, -2), y.flatten()).backward()  # type: ignore[no-untyped-call]
        if self.train.clip is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.train.clip)
        self.optimizer.step()


if __name__ == "__main__":
    main()
