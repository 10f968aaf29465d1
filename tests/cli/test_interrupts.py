"""Runs that are stopped from outside: Ctrl-C, kill, and what can be done with what they leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from msfusion.commands import simulate
from msfusion.records import read
from msfusion.runtimes import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.processes]

PRESET = """
participants = 4
width = 0.5
checkpoint_every = 7
[model]
name = "cnn"
options = { width = 4, depth = 2, hidden = 16 }
[data]
name = "digits"
limit = 300
test_limit = 100
[train]
steps = 2
batch = 16
"""


@pytest.fixture(autouse=True, scope="module")
def _heard() -> Iterator[None]:
    """Processes inherit that a signal is ignored, as Ctrl-C is by what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(PRESET)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from msfusion.cli import main; main()", *map(str, arguments)]


def play(preset: Path, rounds: int, out: Path, *, resume: bool = False) -> None:
    """The same command in this process."""
    simulate.run(str(preset), {"rounds": rounds}, out=out, resume=resume, tensorboard=False, json=True)


def stopped(
    out: Path, rounds: int, how: signal.Signals, *arguments: object, all_of_it: bool = True
) -> tuple[int, str, str]:
    """Start a command and send a signal, to all its processes or to the first alone, when ``rounds`` rounds
    of the run in ``out`` are recorded; returns when all of them have ended."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*arguments), start_new_session=True, **pipes)  # type: ignore[call-overload]
    records = out / "records.jsonl"
    deadline = time.monotonic() + 300
    while not records.exists() or records.read_bytes().count(b"\n") < 1 + rounds:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (os.killpg if all_of_it else os.kill)(process.pid, how)  # a terminal sends Ctrl-C to all
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def done(out: Path) -> int:
    return int(checkpoint.load(out)[1]["rounds_done"])


def test_ctrl_c_and_resume(preset: Path, tmp_path: Path) -> None:
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    code, out, err = stopped(broken, 3, signal.SIGINT, "simulate", preset, "--rounds", 2000, "--out", broken)
    assert (code, out) == (130, "")
    assert err == f"stopped: continue with --out {broken} --resume\n"
    rounds = done(broken)
    assert 3 <= rounds == len(read(broken).rounds)
    play(preset, rounds + 3, broken, resume=True)
    play(preset, rounds + 3, unbroken)
    first, second = checkpoint.load(broken)[0], checkpoint.load(unbroken)[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    scores = [[r["evaluation"] for r in read(run).rounds] for run in (broken, unbroken)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("rounds", [2, 10])
def test_a_killed_run_is_resumed_from_its_last_checkpoint(rounds: int, preset: Path, tmp_path: Path) -> None:
    """Checkpoints come after every seventh round; before the first one there is that of the start."""
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    code, _, _ = stopped(
        broken, rounds, signal.SIGKILL, "simulate", preset, "--rounds", 2000, "--out", broken
    )
    assert code == -signal.SIGKILL
    assert done(broken) % 7 == 0
    last = done(broken) + 3
    play(preset, last, broken, resume=True)
    play(preset, last, unbroken)
    first, second = checkpoint.load(broken)[0], checkpoint.load(unbroken)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_a_comparison_in_one_line(jobs: int, preset: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    flags = ("--methods", "msfusion,fedavg,heterofl", "--out", out, "--jobs", jobs)
    first = out / "msfusion" / "seed-0"
    code, stdout, err = stopped(first, 2, signal.SIGINT, "compare", preset, "--rounds", 2000, *flags)
    assert (code, stdout) == (130, "")
    assert err == f"stopped: continue with --out {out} --resume\n"
    assert done(first) >= 2


def test_nobody_goes_on_when_a_comparison_is_killed(preset: Path, tmp_path: Path) -> None:
    flags = ("--methods", "msfusion,fedavg", "--out", tmp_path, "--jobs", 2, "--rounds", 200_000)
    first = tmp_path / "msfusion" / "seed-0"
    code, _, _ = stopped(first, 2, signal.SIGKILL, "compare", preset, *flags, all_of_it=False)
    assert code == -signal.SIGKILL


def test_ctrl_c_before_anything_is_saved(preset: Path, tmp_path: Path) -> None:
    """While the data are read, which here takes for ever; before that Python and NumPy themselves start,
    and say something else to Ctrl-C."""
    reading = """
import threading
from msfusion.cli import main
from msfusion.commands import simulate
def federation_of(config):
    print("reading", flush=True)
    threading.Event().wait()
simulate.federation_of = federation_of
main()
"""
    arguments = ["simulate", str(preset), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", reading, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "stopped: nothing is saved\n")
