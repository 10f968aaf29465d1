"""Bytes that a peer receives per round for 2, 4, 8 and 16 peers, beside the formula.

Real processes over loopback, shared memory off, counted by the peers themselves (values only, without what
says who is here). A peer pulls its sub-model but for the rows that it keeps itself (2 / N of them, home and
replica), gets what the other N - 1 hand over for the rows that it is home of, and a copy of the rows of
which it is the replica: sub-model x (1 - 2/N) + sub-model x (N - 1)/N + model / N, near two sub-models.

    python benchmarks/peer_bytes.py
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from msfusion.records import Run, read

SETTINGS = [
    "width=0.5",
    "sample=1.0",
    "model.options.width=16",
    "train.steps=1",
    "data.partition=iid",
    "peers.lease=20",
    "evaluate_every=1000",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    print("| peers | sub-model | received per peer and round | formula | ratio |\n|---|---|---|---|---|")
    for peers in arguments.peers:
        with tempfile.TemporaryDirectory() as folder:
            print(row(peers, played(peers, arguments.rounds, Path(folder))), flush=True)


def played(peers: int, rounds: int, folder: Path) -> list[Run]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "msfusion",
        "peer",
        "demo",
        "--local",
        str(peers),
        "--rounds",
        str(rounds),
    ]
    subprocess.run([*command, "--out", str(folder), *settings], check=True, stderr=subprocess.DEVNULL)
    return [read(folder / str(number)) for number in range(peers)]


def row(peers: int, runs: list[Run]) -> str:
    """Means over the peers and over all rounds but the first, which starts from values made at home."""
    measured = mean(
        (last["own"]["received"] - first["own"]["received"]) / between
        for run in runs
        for first, last, between in [(run.rounds[1], run.rounds[-1], len(run.rounds) - 2)]
    )
    header = runs[0].header
    model = 4 * header["model"]["parameters"]
    part = 4 * header["participants"][0]["parameters"]
    formula = part * (1 - 2 / peers) + part * (peers - 1) / peers + model / peers
    return (
        f"| {peers} | {part / 1e3:.1f} kB | {measured / 1e3:.1f} kB | {formula / 1e3:.1f} kB | "
        f"{measured / formula:.2f} |"
    )


if __name__ == "__main__":
    main()
