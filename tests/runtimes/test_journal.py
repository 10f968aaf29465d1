"""Records and checkpoints are written behind the run's back, and nothing that goes wrong there is lost."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import TEST, net, participants, settings
from torch import Tensor

from msfusion import records
from msfusion.config import Config
from msfusion.core.axes import AxisMap
from msfusion.errors import UserError
from msfusion.runtimes import checkpoint
from msfusion.runtimes.journal import Journal
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.simulation import Simulation


def run(out: Path, **changes: Any) -> None:
    problem = Problem(net(), (TEST.tensors[0][:2],), participants(), TEST, name="Net")
    Simulation(problem, settings(**{"rounds": 6, "checkpoint_every": 2, **changes}), out=out).run()


def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The call number ``call`` of a function, counted from 0, finds the disk full."""
    plain, calls = getattr(owner, name), 0

    def fails(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError("disk full")
        return plain(*args)

    monkeypatch.setattr(owner, name, fails)


@pytest.mark.parametrize("call", [0, 1, 3])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints after 0, 2, 4 and 6 rounds; the last one is written when the run is over."""
    failing(monkeypatch, checkpoint, "save", call)
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path)


def test_no_checkpoint_is_written_behind_a_record_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of round 3 is lost: the checkpoint stays that of 2 rounds, which the records hold."""
    failing(monkeypatch, records.Writer, "round", 3)
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path)
    assert checkpoint.load(tmp_path)[1]["rounds_done"] == 2
    assert [r["round"] for r in records.read(tmp_path).rounds] == [0, 1, 2]


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the disk takes: rounds that go on meanwhile change nothing of it."""
    plain = checkpoint.save
    changed = []

    def slow(directory: Path, tensors: dict[str, Tensor], facts: Any) -> None:
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        time.sleep(0.2)
        changed.extend(name for name, tensor in tensors.items() if not torch.equal(tensor, before[name]))
        plain(directory, tensors, facts)

    monkeypatch.setattr(checkpoint, "save", slow)
    run(tmp_path, checkpoint_every=1)
    assert changed == []
    assert checkpoint.load(tmp_path)[1]["rounds_done"] == 6


def journal(out: Path, data: str | None = None, settings: dict[str, Any] | None = None) -> Journal:
    settings = settings or {}
    defaults = dataclasses.asdict(Config() if "model" in settings else Run())
    return Journal(out, settings, defaults, AxisMap({}, {}), [4], data=data)


def test_a_checkpoint_of_other_data_of_the_same_size_is_refused(tmp_path: Path) -> None:
    journal(tmp_path, "one").seal(2, {}, tmp_path)
    assert journal(tmp_path, "one").load([])[0] == 2
    with pytest.raises(UserError, match=r"expected the data of the run in .*, got others of the same size"):
        journal(tmp_path, "other").load([])
    with pytest.warns(UserWarning, match="got others of the same size; the score is of these"):
        journal(tmp_path, "other").load(["data.path"])


def test_data_without_a_digest_are_taken(tmp_path: Path) -> None:
    journal(tmp_path).seal(2, {}, tmp_path)
    assert journal(tmp_path, "one").load([])[0] == 2
    journal(tmp_path, "one").seal(3, {}, tmp_path)
    assert journal(tmp_path).load([])[0] == 3


def test_a_setting_that_an_older_run_lacks_counts_as_its_default(tmp_path: Path) -> None:
    now = dataclasses.asdict(Config())
    old = {key: value for key, value in now.items() if key != "sample"}
    old["train"] = {key: value for key, value in now["train"].items() if key != "clip"}
    journal(tmp_path, settings=old).seal(2, {}, tmp_path)
    assert journal(tmp_path, settings=now).load([])[0] == 2
    with pytest.raises(UserError, match=r"got sample = 0.5 where the run has 1.0; resume"):
        journal(tmp_path, settings=now | {"sample": 0.5}).load([])


def test_a_setting_that_this_version_does_not_know_is_refused_unless_it_has_no_value(tmp_path: Path) -> None:
    now = dataclasses.asdict(Config())
    journal(tmp_path, settings=now | {"later": None}).seal(2, {}, tmp_path)
    assert journal(tmp_path, settings=now).load([])[0] == 2
    journal(tmp_path, settings=now | {"later": 0.5}).seal(2, {}, tmp_path)
    with pytest.raises(UserError, match=r"got later = 0.5; go on with the version that made the run"):
        journal(tmp_path, settings=now).load(["data.path"])


def test_a_run_from_python_is_none_of_the_command_line(tmp_path: Path) -> None:
    journal(tmp_path, settings=dataclasses.asdict(Run())).seal(2, {}, tmp_path)
    with pytest.raises(UserError, match=r"data.name = digits where the run has none"):
        journal(tmp_path, settings=dataclasses.asdict(Config())).load([])


def test_a_run_of_the_command_line_is_none_from_python(tmp_path: Path) -> None:
    journal(tmp_path, settings=dataclasses.asdict(Config())).seal(2, {}, tmp_path)
    with pytest.raises(UserError, match=r"data.name = none where the run has digits"):
        journal(tmp_path, settings=dataclasses.asdict(Run())).load([])
