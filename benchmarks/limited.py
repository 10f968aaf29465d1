"""Processes under a memory limit of the kernel (control groups, version 1 or 2, which need root), and the
training of a model that is large beside it."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def large(participants: int, share: float, rounds: int) -> str:
    """A configuration that trains a ViT of 708M parameters."""
    return f"""
participants = {participants}
share = {share}
rounds = {rounds}
evaluate_every = 1000
[model]
name = "vit"
options = {{ layers = 36, heads = 20, embed = 1280 }}
[data]
name = "digits"
limit = 400
[train]
optimizer = "adamw"
lr = 1e-3
steps = 2
batch = 8
"""


class Limited:
    """A process in a control group of its own, with all that it starts, and its peaks.

    limit: bytes of memory; None: none.
    environment: variables beside those of this process.
    """

    def __init__(
        self, command: list[str], limit: int | None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.anonymous = self.most = 0
        self.code, self.reason = 0, ""
        self._group = Group(limit)
        self._process = subprocess.Popen(
            ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._group.folder / "cgroup.procs"), *command],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=work) for work in (self._look, self._read)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait for its end, and keep its peaks and the last line it said."""
        self.code = self._process.wait()
        for thread in self._threads:
            thread.join()
        self.most = self._group.most()
        self._group.end()

    def end(self) -> None:
        """Kill it and all that it has started, and keep its peaks."""
        self._group.kill()
        self.wait()

    def _look(self) -> None:
        while self._process.poll() is None:
            self.anonymous = max(self.anonymous, self._group.anonymous())
            time.sleep(0.02)

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            if line.strip():
                self.reason = line.strip()


class Group:
    """A control group with a limit of memory."""

    def __init__(self, limit: int | None) -> None:
        root = Path("/sys/fs/cgroup")
        self._old = (root / "memory").is_dir()
        self.folder = root / ("memory" if self._old else "") / f"msfusion-{secrets.token_hex(4)}"
        try:
            self.folder.mkdir()
            if limit is not None:
                (self.folder / ("memory.limit_in_bytes" if self._old else "memory.max")).write_text(
                    str(limit)
                )
        except OSError as error:
            sys.exit(f"expected to make a control group with a memory limit, which failed: {error}")

    def processes(self) -> list[int]:
        """Who is in it."""
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def kill(self) -> None:
        """End all who are in it."""
        while processes := self.processes():
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def end(self) -> None:
        """Remove it, once everyone has left."""
        self.kill()
        self.folder.rmdir()

    def anonymous(self) -> int:
        """Bytes that lie in memory and in no file; what a fork shares with its parent counts once."""
        own = "rss " if self._old else "anon "
        lines = (self.folder / "memory.stat").read_text().splitlines()
        return next(int(line.removeprefix(own)) for line in lines if line.startswith(own))

    def most(self) -> int:
        """The most bytes that the group has had."""
        return int((self.folder / ("memory.max_usage_in_bytes" if self._old else "memory.peak")).read_text())
