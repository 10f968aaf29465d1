"""Peers that are killed at random, for half an hour: what was committed stays, and memory does not grow.

Real processes over loopback, each with what ``msfusion peer`` does; they are forked from this one, as loading
PyTorch anew at every start takes a busy machine longer than the peer was away. Every so often one of them is
killed (SIGKILL, at whatever point of a round it is) and started again. One peer is never killed: its memory
is watched over the whole time. In the end all are stopped with Ctrl-C and the disks are read. Then

- every round that any disk had committed at any kill must be in the history that all ended with,
- the histories of all peers must be one (some end a round or two earlier),
- the parameters on the disks, home and replica, must be those of playing that history in one process.

    python benchmarks/peer_soak.py --minutes 30 --interval 60
"""

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch
from machine import machine
from torch import Tensor

from msfusion.commands.peer import free_port, run
from msfusion.commands.peer_task import task_of
from msfusion.commands.training import federation_of, simulation_of
from msfusion.config import load
from msfusion.learn.carried import Carried
from msfusion.learn.round import play
from msfusion.learn.shards import Shards
from msfusion.peers.agreement import following
from msfusion.peers.past import Past, read_history
from msfusion.peers.settings import Link
from msfusion.peers.states import Entry, Version

PRESET = """
participants = {peers}
width = 0.5
rounds = 1000000
[model]
name = "cnn"
options = {{ width = 8, depth = 2, hidden = 32 }}
[data]
name = "digits"
limit = 400
[train]
steps = {steps}
batch = 16
[peers]
lease = 20.0
settle = 30.0
deadline = 60.0
"""
T = TypeVar("T")
LOOK = 5.0  # seconds between two looks at memory and disks


@dataclass
class Peer:
    """One participant: its folder, its process, and what was seen of it.

    memory: (seconds since the beginning, process id, private and all resident MB, committed rounds).
    """

    number: int
    folder: Path
    preset: Path
    link: Link
    process: BaseProcess | None = None
    memory: list[tuple[float, int, float, float, int]] = field(default_factory=list)

    def start(self) -> None:
        self.process = get_context("fork").Process(target=self._play)
        self.process.start()

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        """Ctrl-C."""
        assert self.process
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGINT)

    def _play(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where this runs in the background as well
        log = os.open(self.folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(
            str(self.preset),
            {},
            participant=str(self.number),
            link=self.link,
            own_data=False,
            out=self.folder,
            evaluate=False,
            export=None,
        )

    def look(self, since: float) -> None:
        """Note the memory that the process takes."""
        assert self.process
        assert self.process.pid
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        own = {name: value for name, _, value in (line.partition(":") for line in lines)}
        private, whole = (int(own[name].split()[0]) / 1e3 for name in ("RssAnon", "VmRSS"))
        version = self.committed()
        rounds = version.round if version else 0
        self.memory.append((time.monotonic() - since, self.process.pid, private, whole, rounds))

    def committed(self) -> Version | None:
        path = self.folder / "committed.json"
        return Version(**json.loads(path.read_text())) if path.exists() else None

    def history(self) -> list[Entry]:
        """The rounds that a peer that has ended had committed."""
        version = self.committed()
        assert version
        history = read_history(self.folder / "versions" / version.text / "history.json")
        return list(Past(self.folder / "blocks").entries(history))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between two kills")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="local steps per round")
    parser.add_argument("--folder", type=Path, help="for the peers' disks and logs; kept")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed and when")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        preset = folder / "soak.toml"
        preset.write_text(PRESET.format(peers=arguments.peers, steps=arguments.steps))
        peers = group(preset, arguments.peers)
        try:
            marks = soak(peers, arguments.minutes * 60, arguments.interval, random.Random(arguments.seed))
        finally:
            for peer in peers:
                if peer.process and peer.process.is_alive():
                    peer.kill()
        report(peers, marks, preset)


def group(preset: Path, count: int) -> list[Peer]:
    port = free_port()
    peers = []
    for n in range(count):
        folder = preset.parent / str(n)
        folder.mkdir()
        link = Link([f"127.0.0.1:{port}"]) if n else Link(listen=[f"127.0.0.1:{port}"])
        peers.append(Peer(n, folder, preset, link))
    return peers


@dataclass
class Mark:
    """What a kill met: who, after how many seconds, and the last version that anyone had committed then.

    Not the rounds themselves: whoever is started later has the memory of this process to begin with.
    """

    victim: int
    at: float
    committed: Version
    rejoined: float | None = None


def soak(peers: list[Peer], seconds: float, interval: float, chance: random.Random) -> list[Mark]:
    """Let them train, kill one in every interval, and stop all."""
    for peer in peers:
        peer.start()
    while any(peer.committed() is None for peer in peers):
        time.sleep(0.1)
    began = time.monotonic()
    marks: list[Mark] = []
    kill_at = began + chance.uniform(0.5, 1) * interval
    next_look = began
    while time.monotonic() < began + seconds:
        now = time.monotonic()
        if now >= kill_at and kill_at < began + seconds - interval / 2:
            victim = chance.choice(peers[:-1])  # the last is never killed
            victim.kill()
            newest = max(own for peer in peers if (own := peer.committed()))
            marks.append(Mark(victim.number, now - began, newest))
            victim.start()
            kill_at += interval
        if now >= next_look:
            next_look += LOOK
            for peer in peers:
                assert peer.process
                assert peer.process.is_alive(), f"peer {peer.number} ended by itself"
                peer.look(began)
        for mark in marks:
            own = peers[mark.victim].committed()
            if mark.rejoined is None and own and own.round > mark.committed.round:
                mark.rejoined = now - began - mark.at
        time.sleep(0.05)
    for peer in peers:
        peer.stop()
    for peer in peers:
        assert peer.process
        peer.process.join(120)
    return marks


def report(peers: list[Peer], marks: list[Mark], preset: Path) -> None:
    histories = [peer.history() for peer in peers]
    longest = max(histories, key=len)
    facts = [facts_of(entry) for entry in longest]
    versions = set(versions_of(longest, preset))
    lost = sum(mark.committed not in versions for mark in marks)
    same = all(peer.committed() in versions for peer in peers)
    ends = ", ".join(str(len(history)) for history in histories)
    print(f"rounds: {len(longest)} (on the disks: {ends}); kills: {len(marks)}")
    print(f"kills after which a round that was committed is missing: {lost}")
    print(f"one history everywhere: {'yes' if same else 'NO'}")
    back = [mark.rejoined for mark in marks if mark.rejoined is not None]
    after = f", after {statistics.median(back):.0f} s (most {max(back):.0f} s)" if back else ""
    print(f"victims that had committed a new round before the end: {len(back)} of {len(marks)}{after}")
    absent = Counter(left.reason for entry in longest for left in entry.left)
    merged, expected = sum(map(len, facts)), len(longest) * len(peers)
    print(f"contributions merged: {merged} of {expected}; left out: {dict(absent)}")
    copies, equal = compared(peers, longest, preset)
    print(f"parameters equal to playing the history: {'yes' if equal else 'NO'} ({copies} shards on disks)")
    print("\n| peer | starts | private MB, by sixths of the time | all resident MB |\n|---|---|---|---|")
    for peer in peers:
        print(memory_row(peer))
    watched = sixths([(private, round) for _, _, private, _, round in peers[-1].memory])
    (early, first), (late, last) = (map(statistics.median, zip(*watched[i], strict=True)) for i in (1, 5))
    print(
        f"private memory of the peer that was never killed, last sixth to second: {late / early:.3f}, or "
        f"{(late - early) * 1e3 / (last - first):.1f} kB per round"
    )
    if lost or not (same and equal):
        raise SystemExit(1)


def facts_of(entry: Entry) -> list[int]:
    return [given.participant for given in entry.given]


def versions_of(history: list[Entry], preset: Path) -> Iterator[Version]:
    """The versions that these rounds lead to; the last says what was merged in all of them."""
    config = load(str(preset))
    version = Version(0, task_of(config, 0, own_data=False).fingerprint)
    for entry in history:
        yield (version := following(version, entry))


def compared(peers: list[Peer], history: list[Entry], preset: Path) -> tuple[int, bool]:
    """Every shard of the last version on any disk, beside the parameters of these rounds in one process."""
    config = load(str(preset))
    simulation = simulation_of(config, federation_of(config), None)
    for round, entry in enumerate(history):
        trained = [simulation.participants[n] for n in facts_of(entry)]
        play(round, trained, simulation.learner, simulation.store, 1.0, Carried())
    want: dict[str, Tensor] = dict(simulation.model.named_parameters())
    version = max(own for peer in peers if (own := peer.committed()))
    seen: set[str] = set()
    copies, equal = 0, True
    for peer in peers:
        for path in (peer.folder / "versions" / version.text).glob("*.safetensors"):
            copies += 1
            for name, values in Shards(path).items():
                seen.add(name)
                equal &= torch.equal(rows(want, name), values)
    covered = sum(rows(want, name).numel() for name in seen)
    return copies, equal and covered == sum(p.numel() for p in want.values())


def rows(parameters: dict[str, Tensor], piece: str) -> Tensor:
    """The rows that a piece ``TENSOR[START:STOP]`` of a shard stands for."""
    name, _, span = piece.rpartition("[")
    start, stop = map(int, span.rstrip("]").split(":"))
    whole = parameters[name].detach()
    return whole[start:stop] if whole.ndim else whole.reshape(1)


def sixths(values: list[T]) -> list[list[T]]:
    """Six parts in order, none of them empty; of fewer than six values some are in several."""
    starts = [len(values) * i // 6 for i in range(7)]
    return [values[start : max(start + 1, end)] for start, end in pairwise(starts)]


def memory_row(peer: Peer) -> str:
    private, whole = ([one[i] for one in peer.memory] for i in (2, 3))
    shown = [" ".join(f"{statistics.median(part):.0f}" for part in sixths(v)) for v in (private, whole)]
    return f"| {peer.number} | {len({pid for _, pid, *_ in peer.memory})} | {shown[0]} | {shown[1]} |"


if __name__ == "__main__":
    main()
