"""``msfusion peer``: one participant of a run among peers, or several of them on this machine for a try."""

import json as json_format
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msfusion.commands import given
from msfusion.commands.peer_task import agreed, task_of
from msfusion.commands.training import stoppable
from msfusion.config import load
from msfusion.errors import UserError
from msfusion.peers.gather import model_folder
from msfusion.peers.mark import Mark, claim
from msfusion.peers.peer import Peer
from msfusion.peers.settings import Link, check_group, name_of, number_of
from msfusion.peers.task import Progress
from msfusion.peers.transport import ROUTER, configuration, opened, zenoh
from msfusion.report.numbers import percent
from msfusion.runtimes.sole import sole


def run(
    preset: str,
    settings: Mapping[str, Any],
    *,
    participant: str,
    link: Link,
    own_data: bool,
    out: Path,
    evaluate: bool,
    export: Path | None,
) -> None:
    """Take part in a run until its last round."""
    config = load(preset, settings)
    check_group(config.peers, config.participants)
    number = number_of(participant, config.peers.names, config.participants)
    zenoh()
    shower = Shower(participant)
    if export is not None:
        export = model_folder(export, out)
    task = task_of(config, number, own_data=own_data)
    with (
        stoppable(out, "start it again with the same command, and it goes on"),
        sole(out, "peer", "stop that one, or give another --out"),
    ):
        claim(out, Mark(task.fingerprint, participant, agreed(config)))
        Peer(
            task,
            config,
            config.peers,
            number,
            config.participants,
            out,
            link,
            shower.say,
            shower.show,
            evaluate=evaluate,
            export=export,
        ).run()
    shower.say(f"done: records and shards are in {out}")


def route(preset: str, settings: Mapping[str, Any], link: Link) -> None:
    """Pass on what peers say to each other who can only connect outwards; no part in any run."""
    config = load(preset, settings)
    check_group(config.peers, config.participants)
    with opened(configuration(link, ROUTER, config.peers.group, config.peers.lease, router=True)):
        print(f"router: passing on at {', '.join(link.listen)}", file=sys.stderr, flush=True)
        threading.Event().wait()


def check_unused(flag: str, unused: Mapping[str, object]) -> None:
    """Raise UserError where an option was given that a flag has no use for: option -> what was given."""
    if named := [name for name, value in unused.items() if value]:
        raise UserError(f"expected {flag} without {named[0]}, which it does not use, got both; drop one")


def local(
    preset: str,
    settings: Mapping[str, Any],
    assignments: list[str],
    peers: int,
    out: Path,
    unused: Mapping[str, object],
) -> None:
    """Start so many peers on this machine and wait for them; the first also scores the full model. When one
    fails, all end.

    assignments: ``key=value`` as the user wrote them, over the settings.
    unused: options that say who and where, which UserError refuses: option -> what was given.
    """
    check_unused("--local", unused)
    config = load(preset, {**settings, **given.pairs(assignments), "participants": peers})
    check_group(config.peers, peers)  # here, or every one of them would say it
    names = [name_of(n, config.peers.names) for n in range(peers)]
    for name in names:
        number_of(name, config.peers.names, peers)
    port = free_port()
    told = [*(f"{key}={json_format.dumps(value)}" for key, value in settings.items()), *assignments]
    command = [sys.executable, "-m", "msfusion", "peer", preset, *(f"--set={one}" for one in told)]
    own = [
        ["--participant", names[n], "--out", str(out / str(n)), "--set", f"participants={peers}"]
        + (["--connect", f"127.0.0.1:{port}"] if n else ["--listen", f"127.0.0.1:{port}", "--evaluate"])
        for n in range(peers)
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with _stopped_by_sigterm():
            started.extend(subprocess.Popen([*command, *one]) for one in own)
            code = _first_failure(started)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        for process in started:
            process.kill()
            process.wait()
    if code:
        raise SystemExit(abs(code))


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended well, or one has not; its code, or 0."""
    while True:
        codes = [process.poll() for process in processes]
        if failed := next((code for code in codes if code), 0):
            return failed
        if None not in codes:
            return 0
        time.sleep(0.1)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does. Outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Shower:
    """Shows a peer's progress: on a terminal where it is, elsewhere a line per round."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Tell what happened."""
        clear = "\r\033[K" if self._terminal else ""
        print(f"{clear}{self._name}: {text}", file=sys.stderr, flush=True)

    def show(self, progress: Progress) -> None:
        """Show where the peer is."""
        if self._terminal:
            print(f"\r\033[K{self._name}: {_line(progress)}", end="", file=sys.stderr, flush=True)
        elif progress.stage in ("push", "done"):
            self.say(_line(progress))


def _line(progress: Progress) -> str:
    parts = [f"round {progress.round}", progress.stage]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.score is not None and progress.score.accuracy is not None:
        parts.append(f"own accuracy {percent(progress.score.accuracy)}")
    if progress.full is not None:
        score = progress.full
        told = f"loss {score.loss:.3f}" if score.accuracy is None else percent(score.accuracy)
        parts.append(f"full model {told}")
    parts.append(f"here {' '.join(progress.here)}")
    parts.append(f"sent {progress.sent / 1e6:.1f} MB, received {progress.received / 1e6:.1f} MB")
    return ", ".join(parts)
