"""Flower as it is deployed, on loopback: a SuperLink with TLS, SuperNodes that it knows by their keys."""

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent

PEM = serialization.Encoding.PEM
SHIPPED = "from points import TASK as task\n"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    """Of every process: its own Flower home, no telemetry, one thread, the tests' modules on the path."""
    home.mkdir(parents=True, exist_ok=True)
    own = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "PYTHONUNBUFFERED": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return {**os.environ, **own}


def write_app(folder: Path, config: Mapping[str, Any], task: str = SHIPPED) -> Path:
    """An app as ``msfusion flower new`` writes it, around the tests' task and settings."""
    command = [BIN / "msfusion", "flower", "new", folder, "--set", "data.limit=100"]
    subprocess.run(command, check=True, capture_output=True)
    (folder / folder.name / "task.py").write_text(task)
    project = folder / "pyproject.toml"
    head, _, _ = project.read_text().partition("[tool.flwr.app.config]")
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    project.write_text("\n".join([head + "[tool.flwr.app.config]", *lines, ""]))
    return folder


class Processes:
    """Processes that end with the test, whatever happens; each leads a group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[Any], home: Path) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(part) for part in command],
                env=environment(home),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self, name: str, how: signal.Signals) -> None:
        """End a process, and what it has started: some of that leads groups of its own."""
        process = self.running.pop(name)
        started = below(process.pid)
        process.send_signal(how)
        try:
            process.wait(30)
        finally:
            for one in (process.pid, *started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            process.wait(30)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end_all(self) -> None:
        for name in list(self.running):
            self.end(name, signal.SIGKILL)


def below(process: int) -> list[int]:
    """The processes that a process has started, and they in turn."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in table.splitlines()]
    own = [pid for pid, parent in parents if parent == process]
    return own + [further for pid in own for further in below(pid)]


class Link:
    """A SuperLink on a free port, and the command line that talks to it."""

    def __init__(self, folder: Path, options: list[str], *, secure: bool) -> None:
        self.folder, self.options, self.secure = folder, options, secure
        self.processes = Processes(folder)
        self.home = folder / "home"
        self.port = free_port()
        environment(self.home)
        connection = {"address": f"127.0.0.1:{self.port}"}
        connection |= {"root-certificates": str(folder / "ca.pem")} if secure else {"insecure": True}  # type: ignore[dict-item]
        lines = [f"{key} = {json.dumps(value)}" for key, value in connection.items()]
        text = "\n".join(["[superlink]", 'default = "tested"', "[superlink.tested]", *lines, ""])
        (self.home / "config.toml").write_text(text)
        try:
            self.start()
        except BaseException:
            self.processes.end_all()
            raise

    def start(self) -> None:
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", self.port]
        command += ["--disable-runtime-dependency-installation", *self.options]
        self.processes.start("superlink", command, self.home)
        verify = ssl.create_default_context(cafile=self.folder / "ca.pem") if self.secure else False
        url = f"{'https' if self.secure else 'http'}://127.0.0.1:{self.port}/health"
        until(lambda: _answers(url, verify), 60, "the SuperLink")

    def flwr(self, *arguments: object, stream: bool = False) -> str:
        """Output of a command of flwr's."""
        command = ["flwr", *map(str, arguments), "tested"]
        done = subprocess.run(
            command, env=environment(self.home), cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


class Deployment(Link):
    """A SuperLink with TLS that lets in only the SuperNodes whose keys are registered."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_certificates(folder)
        files = ["ca-certfile", "certfile", "keyfile"]
        names = ["ca.pem", "server.pem", "server.key"]
        tls = [p for f, n in zip(files, names, strict=True) for p in (f"--ssl-{f}", str(folder / n))]
        options = [*tls, "--enable-supernode-auth", "--database", str(folder / "state.db")]
        super().__init__(folder, options, secure=True)

    def join(self, name: str, config: str, *, register: bool = True) -> None:
        """Start a SuperNode with this node configuration."""
        key = self.folder / f"{name}.key"
        if not key.exists():
            write_key(key)
            if register:
                self.flwr("supernode", "register", key.with_suffix(".pub"))
        command = ["flower-supernode", "--root-certificates", self.folder / "ca.pem"]
        command += ["--superlink", f"127.0.0.1:{self.port}", "--auth-supernode-private-key", key]
        command += ["--host", "127.0.0.1", "--port", free_port(), "--node-config", config]
        self.processes.start(name, command, self.folder / f"home-{name}")


def until(happens: Any, seconds: float, what: str) -> Any:
    """Wait for something to be true; returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := happens():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"waited {seconds} s for {what}")


def write_certificates(folder: Path) -> None:
    """An authority, and a certificate of the server's for loopback."""
    root, name = _certificate("test authority", None, None)
    (folder / "ca.pem").write_bytes(name.public_bytes(PEM))
    key, certificate = _certificate("localhost", name, root)
    (folder / "server.pem").write_bytes(certificate.public_bytes(PEM))
    private = serialization.PrivateFormat.PKCS8
    (folder / "server.key").write_bytes(key.private_bytes(PEM, private, serialization.NoEncryption()))


def _certificate(
    name: str, issuer: x509.Certificate | None, signer: ec.EllipticCurvePrivateKey | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(signer or key, hashes.SHA256())
    )
    return key, built


def write_key(path: Path) -> None:
    """A SuperNode's key, as ssh-keygen writes it, and beside it the public one."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(PEM, private, serialization.NoEncryption()))
    path.chmod(0o600)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)


def _answers(url: str, verify: Any) -> bool:
    try:
        return httpx.get(url, verify=verify, timeout=2).is_success
    except httpx.HTTPError:
        return False
