"""The peer command as it is typed: names, certificates, a router, and a try on one machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from group import PRESET, WAIT, free_port

from msfusion.commands.training import federation_of, simulation_of
from msfusion.config import load
from msfusion.learn.shards import Shards
from msfusion.records import read

pytestmark = [pytest.mark.slow, pytest.mark.processes]

NAMED = PRESET.replace("participants = 4", "participants = 2").replace(
    "[peers]", '[peers]\ngroup = "pair"\nnames = ["anna", "ben"]'
)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "msfusion", *map(str, arguments)]


def started(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command(*arguments), cwd=folder, stdout=log, stderr=log)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ours.toml").write_text(NAMED)
    for arguments in (["new", "pair"], ["add", "anna"], ["add", "ben"], ["add", "router"]):
        subprocess.run(command("certs", *arguments), cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def assert_like_a_simulation(folder: Path) -> None:
    config = load(str(folder / "ours.toml"))
    want = simulation_of(config, federation_of(config), None).run().model
    full = Shards(folder / "full")
    assert all(torch.equal(full[name], value) for name, value in want.named_parameters())
    run = read(folder / "runs" / "peer-anna")
    assert [line["participants"] for line in run.rounds] == [[0, 1]] * config.rounds
    assert all(line["evaluation"] is not None for line in run.rounds)
    assert run.rounds[-1]["own"]["here"] == [0, 1]


@pytest.mark.deployed  # both once said "done" and did not end in 150 s, when threads were not waited for
def test_two_named_peers_with_certificates(folder: Path) -> None:
    port = free_port()
    common = ["peer", "ours.toml", "--certs", "certs"]
    anna = started(
        folder,
        *common,
        "--participant",
        "anna",
        "--listen",
        f"127.0.0.1:{port}",
        "--evaluate",
        "--export",
        "full",
    )
    ben = started(folder, *common, "--participant", "ben", "--connect", f"127.0.0.1:{port}")
    try:
        codes = [anna.wait(timeout=WAIT), ben.wait(timeout=100)]
    finally:
        anna.kill()
        ben.kill()
    assert codes == [0, 0], (folder / "log").read_text()
    assert_like_a_simulation(folder)


def test_peers_that_can_only_connect_outwards_and_a_router_that_dies(folder: Path) -> None:
    port = free_port()
    common = ["peer", "ours.toml", "--certs", "certs", "--rounds", "40", "--set", "train.steps=20"]
    route = [*common, "--router", "--listen", f"127.0.0.1:{port}"]
    reach = [*common, "--outbound", "--connect", f"127.0.0.1:{port}"]
    router = started(folder, *route)
    pair = [started(folder, *reach, "--participant", name) for name in ("anna", "ben")]
    log = folder / "log"
    try:
        until(lambda: "round 3, push" in log.read_text(), log)
        router.kill()
        router.wait()
        until(lambda: "1 here" in log.read_text(), log)
        router = started(folder, *route)
        codes = [one.wait(timeout=WAIT) for one in pair]
    finally:
        for process in (router, *pair):
            process.kill()
            process.wait()
    assert codes == [0, 0], log.read_text()


def until(holds: object, log: Path) -> None:
    limit = time.monotonic() + WAIT
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.05)


def test_four_peers_on_this_machine(folder: Path) -> None:
    (folder / "ours.toml").write_text(PRESET)
    local = started(folder, "peer", "ours.toml", "--local", "3", "--rounds", "2", "--out", "run")
    try:
        assert local.wait(timeout=WAIT) == 0, (folder / "log").read_text()
    finally:
        local.send_signal(signal.SIGINT)
    runs = [read(folder / "run" / str(n)) for n in range(3)]
    assert [len(run.rounds) for run in runs] == [2, 2, 2]
    assert len(runs[0].header["participants"]) == 3
    assert os.path.exists(folder / "run" / "0" / "model")
