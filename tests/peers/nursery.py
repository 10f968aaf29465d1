"""Starts peers as processes of their own, quickly: model and data are made once, then every peer is a fork.

Reads one JSON object per line: which participant, its folder, link and environment, and where its output
goes. Answers with the process id.
"""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from msfusion.commands.peer import route
from msfusion.commands.peer_task import agreed, task_of
from msfusion.commands.training import federation_of, simulation_of
from msfusion.config import Config, load
from msfusion.core.merge import Contribution
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.mark import Mark, claim
from msfusion.peers.peer import Peer
from msfusion.peers.settings import Link
from msfusion.peers.states import Version
from msfusion.peers.task import Progress, Task
from msfusion.runtimes.sole import sole


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the peers
    torch.set_num_threads(1)
    config = load(sys.argv[1])
    tasks = {number: task_of(config, number, own_data=False) for number in range(config.participants)}
    warm_up(config, tasks[0])
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            print_to(order["log"])
            if "router" in order:
                route(sys.argv[1], order["settings"], Link(listen=[f"127.0.0.1:{order['router']}"]))
            os._exit(play(config, tasks[order["number"]], order))
        print(pid, flush=True)


def warm_up(config: Config, task: Task) -> None:
    """Fill PyTorch's caches, which a fork takes along, with what every peer does once: cut the model and
    count what that costs."""
    simulation = simulation_of(config, federation_of(config), None, task.captured)
    for participant in simulation.participants:
        simulation.learner.submodels.module(participant.widths)
        simulation.learner.cost(participant, participant.widths)


class Member(Peer):
    """A peer as tests need it: it stands still before the round that a file names, as long as there is one,
    and may hand over something else than what it has trained."""

    hold: Path
    factor: float

    def _train(self, version: Version) -> None:
        while self._held(version.round) and self.member.error is None:
            if self.board.own.at != version:
                raise Disturbed
            time.sleep(0.05)
        super()._train(version)

    def _held(self, round: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            order = json.loads(self.hold.read_text())
            return round >= order["round"] and self.number in order["who"]
        return False

    def _offer(self, version: Version, contribution: Contribution, loss: float) -> None:
        if self.factor != 1.0:
            values = {name: value * self.factor for name, value in contribution.values.items()}
            contribution = replace(contribution, values=values)
        super()._offer(version, contribution, loss)


def print_to(log: str) -> None:
    """Everything that this process prints goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def play(config: Any, task: Task, order: dict[str, Any]) -> int:
    os.environ |= order["environment"]
    link = order["link"]
    if link.get("certificates"):
        link["certificates"] = Path(link["certificates"])

    def say(text: str) -> None:
        print(text, flush=True)

    def show(progress: Progress) -> None:
        if progress.stage != "waiting":
            say(f"round {progress.round} {progress.stage}")

    settings = load(sys.argv[1], order["settings"]) if order["settings"] else config
    export = Path(order["export"]) if order.get("export") else None
    Member.factor, Member.hold = order.get("factor", 1.0), Path(order["hold"])
    folder, number = Path(order["folder"]), int(order["number"])
    try:
        with sole(folder, "peer", "stop that one"):
            claim(folder, Mark(task.fingerprint, str(number), agreed(settings)))
            peer = Member(
                task,
                settings,
                settings.peers,
                number,
                settings.participants,
                folder,
                Link(**link),
                say,
                show,
                export=export,
                evaluate=order["evaluate"],
            )
            peer.run()
    except BaseException as error:
        say(f"ended: {type(error).__name__}: {error}")
        raise
    say(f"received {json.dumps(peer.network.received)}")
    say("ended well")
    return 0


if __name__ == "__main__":
    main()
