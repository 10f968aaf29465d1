"""Starts peers as processes of their own, quickly: model and data are made once, then every peer is a fork.

Reads one JSON object per line: which participant, its folder, link and environment, and where its output
goes. Answers with the process id.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from msfusion.commands.peer import task_of
from msfusion.config import load
from msfusion.core.merge import Contribution
from msfusion.peers.agreement import Version
from msfusion.peers.peer import Peer, Progress, Task
from msfusion.peers.settings import Link


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the peers
    torch.set_num_threads(1)
    config = load(sys.argv[1])
    tasks = {number: task_of(config, number, own_data=False) for number in range(config.participants)}
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(play(config, tasks[order["number"]], order))
        print(pid, flush=True)


class Poisoner(Peer):
    """A member that hands over something else than what it has trained."""

    factor: float

    def _offer(self, version: Version, contribution: Contribution, loss: float) -> None:
        values = {name: value * self.factor for name, value in contribution.values.items()}
        super()._offer(version, replace(contribution, values=values), loss)


def play(config: Any, task: Task, order: dict[str, Any]) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
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
    kind = Poisoner if "factor" in order else Peer
    Poisoner.factor = order.get("factor", 1.0)
    try:
        kind(
            task,
            settings,
            settings.peers,
            order["number"],
            settings.participants,
            Path(order["folder"]),
            Link(**link),
            say,
            show,
            export=export,
            evaluate=order.get("evaluate", False),
        ).run()
    except BaseException as error:
        say(f"ended: {type(error).__name__}: {error}")
        raise
    say("ended well")
    return 0


if __name__ == "__main__":
    main()
