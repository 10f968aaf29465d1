"""Memory of a simulation on CIFAR-10 against the number of participants, of whom a few train in each round.

Every row is a process of its own: the images of the parquet files are read, divided IID, and three rounds are
played in one process. What grows with the participants is the list of who has which example. Linux only: the
peak is the system's, counted from the end of reading on.

    python benchmarks/many_participants.py --data FOLDER    (with train.parquet and test.parquet)
"""

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import machine

ROWS = ((10, 1.0), (10, 0.1), (100, 0.05), (1000, 0.05), (1000, 0.001))
"""Participants, share of them that trains in a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--row", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.row is not None:
        print(json.dumps(measured(arguments.data, *ROWS[arguments.row])))
        return
    print(machine())
    print("\nResNet-18 of width 16 at 1/4 of its parameters, 4 steps of 16 images, 3 rounds\n")
    print(
        "| participants | of whom train | memory before | peak | above it | s per participant that trains |"
    )
    print("|---|---|---|---|---|---|")
    for row in range(len(ROWS)):
        command = [sys.executable, __file__, "--data", str(arguments.data), "--row", str(row)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        print(text(json.loads(done.stdout.splitlines()[-1])), flush=True)


def text(one: dict[str, Any]) -> str:
    cells = [f"{one['participants']:,}", f"{one['training']}"]
    cells += [f"{one[key] / 1e6:,.0f} MB" for key in ("before", "peak")]
    cells += [f"{(one['peak'] - one['before']) / 1e6:,.0f} MB", f"{one['seconds']:.2f}"]
    return f"| {' | '.join(cells)} |"


def measured(folder: Path, participants: int, sample: float) -> dict[str, float]:
    from msfusion.data import Data, load
    from msfusion.learn.local import Train
    from msfusion.models import build
    from msfusion.runtimes.run import Problem, Run
    from msfusion.runtimes.simulation import Simulation

    ours = load(Data(name="cifar10", path=str(folder), partition="iid", test_limit=256), participants, 0)
    model, example = build("resnet18", ours.inputs, {"width": 16})
    run = Run(
        share=0.25, rounds=3, sample=sample, train=Train(batch=16, steps=4), evaluate_every=3, workers=1
    )
    gc.collect()
    before = forget_peak()  # that of reading the images
    made = Simulation(Problem(model, example, ours.train, ours.test), run)
    result = made.run()
    training = len(made.setup.attendance.present(0, made.participants))
    seconds = sum(record["seconds"] for record in result.history[:-1]) / 2 / training
    return {
        "participants": participants,
        "training": training,
        "before": before,
        "peak": peak(),
        "seconds": seconds,
    }


def forget_peak() -> int:
    """Memory as it is; from now on ``peak`` counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
