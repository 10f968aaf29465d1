"""A server side that is started again goes on, wherever it was ended, and ends with the same parameters."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from inline import nodes_of, play
from points import CONFIG, TASK, model, parameters, points, rounds, same, simulated, stored
from torch.utils.data import TensorDataset

from msfusion.core.twins import Twins
from msfusion.errors import UserError
from msfusion.flower import Settings, Task, home, server, server_app
from msfusion.flower.home import Home, check_out
from msfusion.learn.disk_store import DiskStore
from msfusion.runtimes.sole import sole

CONTRAST = {**CONFIG, "contrast.weight": 1.0}
ALL = {**CONTRAST, "twins": 0.9, "server_momentum": 0.5}


class Killed(BaseException):
    """Ends a process's work at once."""


def killed(*_: Any, **__: Any) -> Any:
    raise Killed


def after(times: int, original: Any) -> Any:
    """Does as the original so many times, then is killed."""
    calls = []

    def act(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs) if len(calls) <= times else killed()

    return act


MOMENTS: dict[str, tuple[Any, str, int]] = {
    "before there are values": (home, "write_initial", 0),
    "before twins are copies": (Twins, "start_", 3),
    "before the copies count": (Home, "_save", 1),
    "before the records are opened": (Home, "writing", 0),
    "before the first round": (server, "ask", 0),
    "in mid-round": (server, "unpacked", 10),
    "before the merge counts": (DiskStore, "_point_to", 1),
    "after the merge counts": (DiskStore, "_remove_all_but", 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_was_killed_goes_on(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, times = MOMENTS[moment]
    config = {**ALL, "out": str(tmp_path / "run")}
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, after(times, getattr(owner, name)))
        with pytest.raises(Killed):
            play(TASK, nodes_of(TASK, 3, tmp_path), config)
    play(TASK, nodes_of(TASK, 3, tmp_path), config)
    assert [r["round"] for r in rounds(tmp_path / "run")] == [0, 1, 2]
    assert same(stored(tmp_path / "run"), parameters(simulated(**ALL)))
    assert len([p for p in (tmp_path / "run" / "model").iterdir() if p.is_dir()]) == 1


def test_what_a_node_can_afford_may_change_before_the_first_round_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CONFIG, "twins": 0.9, "rounds": 1, "out": str(tmp_path / "run")}
    with monkeypatch.context() as patched:
        patched.setattr(server, "ask", killed)
        with pytest.raises(Killed):
            play(TASK, nodes_of(TASK, 3, tmp_path), config)
    nodes = nodes_of(TASK, 3, tmp_path)
    nodes.nodes[1].config["width"] = 0.25
    play(TASK, nodes, config)
    expected = simulated(twins=0.9, rounds=1, width=(0.5, 0.25, 0.5))
    assert same(stored(tmp_path / "run"), parameters(expected))


def test_a_finished_run_goes_on_with_more_rounds_only(tmp_path: Path) -> None:
    config = {**CONTRAST, "out": str(tmp_path / "run")}
    play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "rounds": 2})
    with pytest.raises(UserError, match="expected rounds left to do"):
        play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "rounds": 2})
    with pytest.raises(UserError, match=r"got train\.lr = 0\.2"):
        play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "train.lr": 0.2})
    play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "waiting.patience": 9.0})
    assert same(stored(tmp_path / "run"), parameters(simulated(**CONTRAST)))


def test_a_second_server_side_is_kept_from_a_run(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    context = Context(1, 1, {}, RecordDict(), {**CONFIG, "out": str(tmp_path / "run")})
    with sole(tmp_path / "run", "", ""), pytest.raises(UserError, match="another ServerApp is"):
        server_app(TASK)(nodes.grid, context)


def test_state_of_runs_that_are_over_is_removed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    days = {"a" * 32: 31, "b" * 32: 29, "c" * 32: 31, "notes": 31}
    for name, age in days.items():
        folder = state / name / "participant-1"
        folder.mkdir(parents=True)
        for number in (1, 2):
            (folder / f"{number:06d}.safetensors").touch()
            when = time.time() - 86400 * (age if number == 1 else age - 0.5)
            os.utime(folder / f"{number:06d}.safetensors", (when, when))
    (state / ("c" * 32) / "participant-1" / "mine.txt").touch()
    play(TASK, nodes_of(TASK, 3, tmp_path), {**CONTRAST, "out": str(tmp_path / "run")})
    left = {str(p.relative_to(state)) for p in state.rglob("*") if p.is_file() and p.parts[-3] in days}
    kept = [f"{name}/participant-1/{i:06d}.safetensors" for name in ("b" * 32, "notes") for i in (1, 2)]
    assert left == {*kept, f"{'c' * 32}/participant-1/mine.txt"}
    assert not (state / ("a" * 32)).exists()


def test_a_participant_keeps_no_more_than_the_last_rounds(tmp_path: Path) -> None:
    play(TASK, nodes_of(TASK, 3, tmp_path), {**CONTRAST, "out": str(tmp_path / "run")})
    (training,) = (tmp_path / "state").iterdir()
    assert sorted(p.name for p in training.iterdir()) == [f"participant-{i}" for i in range(3)]
    assert sorted(p.name for p in (training / "participant-0").iterdir()) == [
        "000001.safetensors",
        "000002.safetensors",
    ]


def test_foreign_files_beside_what_a_participant_remembers_do_no_harm(tmp_path: Path) -> None:
    config = {**CONTRAST, "out": str(tmp_path / "run")}
    play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "rounds": 1})
    (training,) = (tmp_path / "state").iterdir()
    foreign = [
        training / "participant-0" / name
        for name in ("._000000.safetensors", "000000 (copy).safetensors", "²²²²²².safetensors")
    ]
    for path in foreign:
        path.write_bytes(b"no tensors")
    play(TASK, nodes_of(TASK, 3, tmp_path), config)
    assert same(stored(tmp_path / "run"), parameters(simulated(**CONTRAST)))
    assert all(path.exists() for path in foreign)


def test_what_labels_stand_for_is_kept_by_a_run_that_goes_on(tmp_path: Path) -> None:
    def classes(settings: Settings, participant: int, node: Any) -> str:
        return "cat dog bird" if participant in (0, 1) else "dog cat bird"

    def four(settings: Settings, participant: int, node: Any) -> TensorDataset:
        return points(20, participant)

    task = Task(model, four, meaning=classes)
    config = {**CONFIG, "participants": 4, "waiting.patience": 0.5, "out": str(tmp_path / "run")}
    play(task, nodes_of(task, 4, tmp_path), {**config, "rounds": 1})  # of as many, those of the lowest number
    nodes = nodes_of(task, 4, tmp_path)
    nodes.down(nodes.nodes[0])
    play(task, nodes, {**config, "waiting.quorum": 0.25, "rounds": 2})
    assert [r["participants"] for r in rounds(tmp_path / "run")] == [[0, 1], [1]]


@pytest.mark.parametrize(
    "place", ["notes.txt", "answers/notes.txt", "model/000007/notes.txt", "initial/a.txt"]
)
def test_a_directory_in_which_something_else_lies_is_refused(place: str, tmp_path: Path) -> None:
    file = tmp_path / "out" / place
    file.parent.mkdir(parents=True)
    file.touch()
    context = Context(1, 1, {}, RecordDict(), {**CONFIG, "out": str(tmp_path / "out")})
    with pytest.raises(
        UserError, match=f"holds a run under Flower, got .*/out with {Path(place).parts[0]}: set"
    ):
        server_app(TASK)(nodes_of(TASK, 3, tmp_path).grid, context)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize("draft", [[], ["model.safetensors"], ["model.safetensors", "mine.txt"]])
def test_what_a_start_that_was_killed_has_left_is_replaced(draft: list[str], tmp_path: Path) -> None:
    (tmp_path / "initial.draft").mkdir()
    for name in ("lock", *(f"initial.draft/{one}" for one in draft)):
        (tmp_path / name).touch()
    if "mine.txt" in " ".join(draft):
        with pytest.raises(UserError, match=r"with initial\.draft"):
            check_out(tmp_path)
    else:
        check_out(tmp_path)


def test_files_of_ones_own_in_a_run_directory_stay(tmp_path: Path) -> None:
    config = {**CONFIG, "out": str(tmp_path / "run")}
    play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "rounds": 1})
    mine = [tmp_path / "run" / place for place in ("answers/notes.txt", "model/2024/notes.txt", "notes.txt")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    check_out(tmp_path / "run")
    play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "rounds": 2})
    assert all(file.exists() for file in mine)
