"""A group of real peers on this machine, for tests: starts, stops and kills processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from msfusion.commands.training import federation_of, simulation_of
from msfusion.config import load
from msfusion.learn.carried import Carried
from msfusion.learn.round import play
from msfusion.learn.shards import Shards
from msfusion.learn.store import Store
from msfusion.peers.past import Past, read_history
from msfusion.peers.points import VARIABLE
from msfusion.peers.states import Version
from msfusion.runtimes.simulation import Simulation

PRESET = """
participants = 4
server_momentum = 0.5  # so that velocities have to survive what values survive
twins = 0.9  # so that homes join pieces
width = 0.5
rounds = 4
[model]
name = "cnn"
options = { width = 8, depth = 2, hidden = 32 }
[data]
name = "digits"
limit = 400
[train]
steps = 3
batch = 16
[peers]
lease = 30.0  # a killed peer is noticed at once all the same, and no busy machine is silent for so long
settle = 60.0
deadline = 60.0
"""
Name = int | Literal["router"]
"""A participant's number, or the router."""

WAIT = 150.0  # seconds after which a test is given up


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Nursery:
    """A process that forks peers of one preset."""

    def __init__(self, preset: Path) -> None:
        self.preset = preset
        command = [sys.executable, str(Path(__file__).with_name("nursery.py")), str(preset)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._answer() == "ready"

    def start(self, order: dict[str, Any]) -> int:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


class Group:
    """Peers of one run in ``folder``; leaves no process behind.

    released: a file; while it is not there, peers that were started to hold at a point do.
    """

    def __init__(self, nursery: Nursery, folder: Path, **settings: Any) -> None:
        self._nursery, self.folder = nursery, folder
        self.settings = settings
        self.config = load(str(nursery.preset), settings)
        self.port = free_port()
        self._router = free_port()
        self.pids: dict[Name, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._hold = folder / "hold"
        self.released = folder / "released"

    def __enter__(self) -> "Group":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self.pids:
            self.signal(number, signal.SIGKILL)

    def start(
        self,
        number: int,
        stop_at: str | None = None,
        *,
        factor: float | None = None,
        evaluate: bool = False,
        **link: Any,
    ) -> None:
        """Start a peer, or start it anew. The first listens where all the others connect.

        factor: by which it multiplies what it hands over.
        """
        own = f"127.0.0.1:{self.port if number == 0 else 0}"
        reach = {"connect": [f"127.0.0.1:{self.port}"] if number else [], "listen": [own]}
        self.pids[number] = self._nursery.start(
            {
                "number": number,
                "folder": str(self.folder / str(number)),
                "log": str(self.log(number)),
                "link": reach | link,
                "settings": self.settings,
                "environment": {VARIABLE: stop_at} if stop_at else {},
                "export": str(self.folder / f"full-{number}"),
                "hold": str(self._hold),
                "evaluate": evaluate,
                **({} if factor is None else {"factor": factor}),
            }
        )

    def hold(self, round: int, who: Iterable[int] | None = None) -> None:
        """From this round on nobody trains, or none of some, however fast the machine is."""
        order = {"round": round, "who": sorted(who if who is not None else range(self.config.participants))}
        draft = self._hold.with_suffix(".draft")
        draft.write_text(json.dumps(order))
        draft.rename(self._hold)

    def go_on(self) -> None:
        """Everybody trains again."""
        self._hold.unlink()

    def start_router(self) -> None:
        """Start what peers ``behind_router`` connect to."""
        self.pids["router"] = self._nursery.start(
            {"router": self._router, "log": str(self.log("router")), "settings": self.settings}
        )

    @property
    def behind_router(self) -> dict[str, Any]:
        """The link of a peer that only connects outwards."""
        return {"outbound": True, "connect": [f"127.0.0.1:{self._router}"], "listen": []}

    def start_all(self, numbers: Iterable[int] | None = None) -> "Group":
        for number in numbers if numbers is not None else range(self.config.participants):
            self.start(number)
        return self

    def log(self, number: Name) -> Path:
        return self.folder / f"{number}.log"

    def text(self, number: Name) -> str:
        return self.log(number).read_text() if self.log(number).exists() else ""

    def signal(self, number: Name, kind: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[number], kind)

    def alive(self, number: Name) -> bool:
        """Whether the process runs; a stopped one does not."""
        try:
            state = Path(f"/proc/{self.pids[number]}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZXT"

    def wait(self, until: Callable[[], bool], seconds: float = WAIT) -> None:
        limit = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < limit, "\n".join(f"-- {n}\n{self.text(n)[-1500:]}" for n in self.pids)
            time.sleep(0.05)

    def wait_for_text(self, number: int, text: str, seconds: float = WAIT) -> None:
        self.wait(lambda: text in self.text(number), seconds)

    def finished(self, numbers: Iterable[int] | None = None, seconds: float = WAIT) -> None:
        """Wait until these peers, or all, have ended well."""
        own = list(self.pids if numbers is None else numbers)
        self.wait(lambda: all("ended well" in self.text(n) for n in own), seconds)

    def model(self, number: int) -> dict[str, Tensor]:
        """Parameters that a peer has gathered at the end."""
        full = Shards(self.folder / f"full-{number}")
        return {name: tensor.clone() for name, tensor in full.items()}

    def received(self, number: int) -> dict[str, int]:
        """Bytes that a peer that has ended well got from others, by kind."""
        line = next(line for line in self.text(number).splitlines() if line.startswith("received "))
        counted: dict[str, int] = json.loads(line.removeprefix("received "))
        return counted

    def left(self, number: int) -> list[dict[int, str]]:
        """Who was left out and why, round by round."""
        return [
            {one["participant"]: one["reason"] for one in entry["left"]} for entry in self._entries(number)
        ]

    def history(self, number: int) -> list[list[int]]:
        """Who was merged, round by round, as a peer's disk tells."""
        return [[given["participant"] for given in entry["given"]] for entry in self._entries(number)]

    def committed(self, number: int) -> int:
        """How many rounds a peer's disk holds for good."""
        path = self.folder / str(number) / "committed.json"
        return int(json.loads(path.read_text())["round"]) if path.exists() else 0

    def _entries(self, number: int) -> list[dict[str, Any]]:
        """The rounds that are committed on a peer's disk."""
        folder = self.folder / str(number)
        path = folder / "committed.json"
        if not path.exists():
            return []
        last = Version(**json.loads(path.read_text())).text
        history = read_history(folder / "versions" / last / "history.json")
        return [asdict(entry) for entry in Past(folder / "blocks").entries(history)]


def simulated(nursery: Nursery, out: Path | None = None, **settings: Any) -> dict[str, Tensor]:
    """Parameters after the same run in one process, which leaves its records in ``out``."""
    torch.set_num_threads(1)
    config = load(str(nursery.preset), settings)
    result = simulation_of(config, federation_of(config), out).run()
    return {name: p.detach() for name, p in result.model.named_parameters()}


class Replay:
    """Runs rounds of given contributors in one process."""

    def __init__(self, nursery: Nursery) -> None:
        torch.set_num_threads(1)
        self._config = load(str(nursery.preset))
        self._data = federation_of(self._config)
        self._captured = simulation_of(self._config, self._data, None).setup.captured

    def model(
        self, history: list[list[int]], store: Callable[[Simulation], Store] | None = None
    ) -> dict[str, Tensor]:
        """Parameters after rounds in which these participants contributed.

        store: what they pull from and push to, by default the simulation's own.
        """
        simulation = simulation_of(self._config, self._data, None, self._captured)
        kept = store(simulation) if store else simulation.store
        for round, numbers in enumerate(history):
            own = [simulation.participants[n] for n in numbers]
            play(round, own, simulation.learner, kept, 1.0, Carried())
        return {name: p.detach() for name, p in simulation.model.named_parameters()}
