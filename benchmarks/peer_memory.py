"""Four peers under a memory limit train a model whose training state is over four times the limit.

The limit is on what of a process lies in memory (VmRSS: imports and pages of mapped files included), and is
kept by killing the process as soon as it is seen above it, a hundred times a second. RLIMIT_AS and
RLIMIT_DATA would count addresses instead, those of mapped files among them, which take no memory. Shown as
well is the peak that the system counted (VmHWM), which is to be below the limit too. Training state:
parameters, gradients and AdamW's two moments in single precision. Full training is one plain step of the same
model with the same batch, with the limit and without it. Needs about 7 GB of memory for the last, and 12 GB
of disk.

    python benchmarks/peer_memory.py
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from machine import machine

from msfusion.commands.peer import free_port
from msfusion.records import read

PEERS, ROUNDS, BATCH = 4, 2, 8
SIZES = {"layers": 24, "heads": 16, "embed": 1024}
LIMIT = 1_200_000_000
PRESET = f"""
participants = {PEERS}
share = 0.08
rounds = {ROUNDS}
evaluate_every = 1000
[model]
name = "vit"
options = {{ {", ".join(f"{key} = {value}" for key, value in SIZES.items())} }}
[data]
name = "digits"
limit = 400
[train]
optimizer = "adamw"
lr = 1e-3
steps = 2
batch = {BATCH}
[peers]
lease = 30.0
"""
FULL = f"""
import sys
import torch
from msfusion.config import load
from msfusion.data import load as load_data
from msfusion.models import build
config = load(sys.argv[1])
data = load_data(config.data, 1, 0)
model = build(config.model.name, data.inputs, config.model.options)[0]
images, labels = data.train[0].batch(torch.arange({BATCH}))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
torch.nn.functional.cross_entropy(model(images), labels).backward()
optimizer.step()
"""
IMPORTS = "import msfusion.peers.peer, zenoh"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where 12 GB of shards may lie meanwhile")
    arguments = parser.parse_args()
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        parameters, peers = trained(Path(folder))
        preset = str(Path(folder) / "big.toml")
        imports = Watched([*python, IMPORTS], LIMIT)
        full = [Watched([*python, FULL, preset], limit) for limit in (LIMIT, None)]
        for process in (imports, *full):
            process.wait()
    print(machine())
    state = 16 * parameters
    print(
        f"{parameters:,} parameters: {4 * parameters / 1e9:.2f} GB, training state {state / 1e9:.2f} GB;"
        f" limit {LIMIT / 1e9:.2f} GB, of which it is {state / LIMIT:.2f} times as much\n"
    )
    print("| process | limit | ends | peak in memory | of it without mapped files |")
    print("|---|---|---|---|---|")
    row("imports only", True, imports)
    for number, peer in enumerate(peers):
        row(f"peer {number}, {ROUNDS} rounds", True, peer)
    row("full training", True, full[0])
    row("full training", False, full[1])


def trained(folder: Path) -> tuple[int, list["Watched"]]:
    """Parameters of the full model, and the peers, each of which has ended."""
    preset, port = folder / "big.toml", free_port()
    preset.write_text(PRESET)
    peers = []
    for number in range(PEERS):
        reach = ["--connect", f"127.0.0.1:{port}"] if number else ["--listen", f"127.0.0.1:{port}"]
        own = ["--participant", str(number), "--out", str(folder / str(number))]
        peers.append(Watched([sys.executable, "-m", "msfusion", "peer", str(preset), *own, *reach], LIMIT))
    for peer in peers:
        peer.wait()
        if peer.code:
            sys.exit(f"a peer ended with {peer.code}, at {peer.peak}: {peer.reason}")
    run = read(folder / "0")
    assert [line["participants"] for line in run.rounds] == [[*range(PEERS)]] * ROUNDS
    return run.header["model"]["parameters"], peers


def row(name: str, limited: bool, process: "Watched") -> None:
    end = {0: "well", -9: "killed at the limit"}.get(process.code, process.reason[:60])
    print(
        f"| {name} | {'yes' if limited else 'no'} | {end} | {process.peak['VmHWM'] * 1024 / 1e9:.2f} GB |"
        f" {process.peak['RssAnon'] * 1024 / 1e9:.2f} GB |",
        flush=True,
    )


class Watched:
    """A process that is killed above a limit, and its peaks; kB.

    limit: bytes in memory; None: none.
    """

    def __init__(self, command: list[str], limit: int | None) -> None:
        self.peak = {"VmHWM": 0, "RssAnon": 0, "VmRSS": 0}
        self.code, self.reason = 0, ""
        self._limit = limit
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._threads = [threading.Thread(target=work) for work in (self._look, self._read)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        self.code = self._process.wait()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while self._process.poll() is None:
            try:
                lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
            except FileNotFoundError:
                return
            for line in lines:
                name, _, value = line.partition(":")
                if name in self.peak:
                    self.peak[name] = max(self.peak[name], int(value.split()[0]))
            if self._limit is not None and self.peak["VmRSS"] * 1024 > self._limit:
                self._process.kill()
            time.sleep(0.01)

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            if line.strip():
                self.reason = line.strip()


if __name__ == "__main__":
    main()
