"""One process at a time in a run directory."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
import torch
from blobs import FEATURES, TEST, net, participants, play, same, settings

from msfusion import UserError
from msfusion.records import Round, read
from msfusion.runtimes import checkpoint
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation
from msfusion.runtimes.sole import sole


def test_two_runs_at_once_into_one_folder(tmp_path: Path) -> None:
    """The second is refused, also where it would go on, and leaves what the first writes as it is."""
    out, tries = tmp_path / "run", []

    def watch(record: Round) -> None:
        for resume in (False, True):
            with pytest.raises(UserError, match="another process is: wait for its end"):
                play(out, seed=0 if resume else 1, resume=resume)
            tries.append(record["round"])

    problem = Problem(net(), (torch.zeros(2, FEATURES),), participants(), TEST, name="Net")
    Simulation(problem, settings(), out=out).run(watch=watch)
    assert tries == [0, 0, 1, 1, 2, 2]
    play(tmp_path / "alone")
    assert same(checkpoint.load(out)[0], checkpoint.load(tmp_path / "alone")[0])
    assert [one["round"] for one in read(out).rounds] == [0, 1, 2]
    play(out, resume=True, rounds=4)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_keeps_nobody_out(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    play(tmp_path / "run")
    play(tmp_path / "run", resume=True, rounds=4)


def test_a_child_that_lives_on_holds_nothing(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with sole(tmp_path, "process", "wait"):
        child = os.fork()
        if not child:
            os.write(writes, b"lives")
            signal.pause()
    os.read(reads, 5)
    try:
        with sole(tmp_path, "process", "wait"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
