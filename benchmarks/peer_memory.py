"""Four peers under a memory limit train a model whose training state is over four times the limit.

Each process is alone in a control group of the kernel (memory, version 1 or 2; needs root): what it
allocates, the pages of files that it has mapped or written and what the kernel keeps for it all count, and it
is killed where that cannot be brought under the limit. Swap is not used. Shown as well are the peak of the
group, which touches the limit wherever files are cached, and the most that was resident and not a page of a
file. Training state: parameters, gradients and AdamW's two moments in single precision. Full training is one
plain step of the same model with the same batch, with the limit and without it. Needs about 12 GB of memory
for the last, and 25 GB of disk.

    sudo python benchmarks/peer_memory.py
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from limited import Limited, large
from machine import machine
from torch.nn.functional import cross_entropy

from msfusion.commands.peer import free_port
from msfusion.config import load
from msfusion.data import fetch
from msfusion.data import load as load_data
from msfusion.models import build
from msfusion.records import read

PEERS, ROUNDS, SHARE = 4, 2, 0.08
LIMIT = 2_800_000_000
PRESET = f"{large(PEERS, SHARE, ROUNDS)}[peers]\nlease = 30.0\n"
IMPORTS = "import msfusion.peers.peer, zenoh"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where 25 GB of shards may lie meanwhile")
    parser.add_argument("--full", type=Path, metavar="PRESET", help="one step of full training alone")
    arguments = parser.parse_args()
    if arguments.full:
        step(arguments.full)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        parameters, peers = trained(Path(folder))
        preset = str(Path(folder) / "big.toml")
        imports = Limited([sys.executable, "-c", IMPORTS], LIMIT)
        imports.wait()
        full = []
        for limit in (LIMIT, None):
            full.append(Limited([sys.executable, __file__, "--full", preset], limit))
            full[-1].wait()
    print(machine())
    state = 16 * parameters
    print(
        f"{parameters:,} parameters: {4 * parameters / 1e9:.2f} GB, training state {state / 1e9:.2f} GB;"
        f" limit {LIMIT / 1e9:.2f} GB, of which it is {state / LIMIT:.2f} times as much\n"
    )
    print("| process | limit | ends | peak of its group | peak without pages of files |")
    print("|---|---|---|---|---|")
    row("imports only", True, imports)
    for number, peer in enumerate(peers):
        row(f"peer {number}, {ROUNDS} rounds", True, peer)
    row("full training", True, full[0])
    row("full training", False, full[1])


def step(preset: Path) -> None:
    """Full training, one step of it."""
    config = load(str(preset))
    data = load_data(config.data, 1, 0)
    model, _ = build(config.model.name, data.inputs, config.model.options)
    images, labels = fetch(data.train[0], torch.arange(config.train.batch), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr)
    cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def trained(folder: Path) -> tuple[int, list[Limited]]:
    """Parameters of the full model, and the peers, each of which has ended."""
    preset, port = folder / "big.toml", free_port()
    preset.write_text(PRESET)
    peers = []
    for number in range(PEERS):
        reach = ["--connect", f"127.0.0.1:{port}"] if number else ["--listen", f"127.0.0.1:{port}"]
        own = ["--participant", str(number), "--out", str(folder / str(number))]
        peers.append(Limited([sys.executable, "-m", "msfusion", "peer", str(preset), *own, *reach], LIMIT))
    for peer in peers:
        peer.wait()
        if peer.code:
            sys.exit(f"a peer ended with {peer.code}, at {peer.anonymous / 1e9:.2f} GB: {peer.reason}")
    run = read(folder / "0")
    assert [line["participants"] for line in run.rounds] == [[*range(PEERS)]] * ROUNDS
    return run.header["model"]["parameters"], peers


def row(name: str, limited: bool, process: Limited) -> None:
    end = {0: "well", -9: "killed at the limit"}.get(process.code, process.reason[:60])
    print(
        f"| {name} | {'yes' if limited else 'no'} | {end} | {process.most / 1e9:.2f} GB |"
        f" {process.anonymous / 1e9:.2f} GB |",
        flush=True,
    )


if __name__ == "__main__":
    main()
