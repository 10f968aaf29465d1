"""Machines for tests: network namespaces with a link between them, and a hosts file of their own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

HOSTS = Path("/etc/netns")
"""``ip netns exec`` puts what lies here in place of the files of /etc."""


def why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if shutil.which("ip") is None:
        return "needs ip of iproute2"
    name = f"msfusion-try-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces are not allowed here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return None


class Machines:
    """Namespaces, each with a folder; leaves nothing behind.

    names: one folder each, in ``folder``.
    links: pairs of machines with a cable between them; the i-th is the network 10.77.i.0/24, in which the
    first has the address .1 and the second .2.
    hosts: what names stand for, on all machines.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        links: Sequence[tuple[str, str]],
        hosts: Mapping[str, str],
    ) -> None:
        self._folder, self._names, self._links, self._hosts = folder, names, links, hosts
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Machines":
        for name in self._names:
            self.folder(name).mkdir()
            _run("ip", "netns", "add", self._space(name))
            _run("ip", "-n", self._space(name), "link", "set", "lo", "up")
            own = HOSTS / self._space(name)
            own.mkdir(parents=True)
            lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in self._hosts.items())]
            (own / "hosts").write_text("\n".join(lines) + "\n")
        for i, pair in enumerate(self._links):
            ends = [("ip", "link", "add", f"msf{i}", "netns", self._space(pair[0]), "type", "veth")]
            _run(*ends[0], "peer", "name", f"msf{i}", "netns", self._space(pair[1]))
            for number, name in enumerate(pair, start=1):
                at = ("ip", "-n", self._space(name))
                _run(*at, "address", "add", f"10.77.{i}.{number}/24", "dev", f"msf{i}")
                _run(*at, "link", "set", f"msf{i}", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", self._space(name)], check=False)
            shutil.rmtree(HOSTS / self._space(name), ignore_errors=True)
        with contextlib.suppress(OSError):
            HOSTS.rmdir()  # if nobody else has anything there

    def folder(self, name: str) -> Path:
        return self._folder / name

    def log(self, name: str) -> str:
        return (self.folder(name) / "log").read_text()

    def start(self, name: str, line: str) -> subprocess.Popen[bytes]:
        """Start a command line on a machine, as it would be typed there; its folder is the current one."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (self.folder(name) / "log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._space(name), "sh", "-c", line],
                cwd=self.folder(name),
                env={**os.environ, "PATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def _space(self, name: str) -> str:
        return f"msfusion-{os.getpid()}-{name}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
