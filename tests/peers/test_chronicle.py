"""The records that a peer writes from the history of its group."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from group import PRESET

from msfusion.commands.peer_task import task_of
from msfusion.config import load
from msfusion.learn.evaluation import Evaluation
from msfusion.peers import agreement, past
from msfusion.peers.chronicle import Chronicle, own_line
from msfusion.peers.past import History, Past
from msfusion.peers.states import Entry, Given, Version
from msfusion.peers.task import Task
from msfusion.peers.wire import Wire
from msfusion.records import FILE_NAME, Own, Round, read
from msfusion.runtimes.setup import Setup

FIRST = Version(0, "first")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Setup]:
    preset = tmp_path_factory.mktemp("preset") / "small.toml"
    preset.write_text(PRESET)
    config = load(str(preset))
    task = task_of(config, 0, own_data=False)
    device = torch.device("cpu")
    setup = Setup(task.captured, task.example, task.objective, config, participants=4, device=device)
    return task, setup


class Run:
    """A peer's folder with blocks of two rounds, and its chronicle."""

    def __init__(self, folder: Path, made: tuple[Task, Setup], wire: Wire | None = None) -> None:
        self.folder, (task, setup) = folder, made
        self.past = Past(folder / "blocks")
        folder.mkdir(exist_ok=True)
        self.past.open()
        self.chronicle = Chronicle(folder, setup, task.described, FIRST, self.past, wire)

    def record(
        self, entries: Sequence[Entry], own: dict[int, Own], scores: dict[int, Evaluation] | None = None
    ) -> list[Round]:
        """What is on file after these rounds were recorded; what was seen and scored, by round."""
        at, history = [FIRST], History("", FIRST, ())
        for one in entries:
            history = self.past.going_on(at[-1], history, one)
            at.append(agreement.following(at[-1], one))
        scored = {at[round + 1]: score for round, score in (scores or {}).items()}
        seen = {at[round]: line for round, line in own.items()}
        self.chronicle.write(at[-1], history, {0: 100}, scored, seen)
        return list(read(self.folder).rounds)


def entries(*rounds: tuple[int, ...]) -> list[Entry]:
    """Rounds with these contributors."""
    return [
        Entry(tuple(Given(n, 100, 0.5, f"{round}x{n}") for n in numbers), ())
        for round, numbers in enumerate(rounds)
    ]


def seen(*rounds: int) -> dict[int, Own]:
    """What peer 0 saw of rounds: that it was alone."""
    return {round: own_line(0, Evaluation(1.0, 0.5, 10), 0, 0, [0]) for round in rounds}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "BLOCK", 2)


@pytest.fixture
def run(tmp_path: Path, made: tuple[Task, Setup]) -> Iterator[Callable[[str], Run]]:
    """Runs in folders of their own; one that is asked for again starts again."""
    with ExitStack() as open:

        def start(name: str) -> Run:
            one = Run(tmp_path / name, made)
            open.callback(one.chronicle.close)
            return one

        yield start


FIVE: list[tuple[int, ...]] = [(0, 1), (2, 3), (0, 3), (1, 2), (0, 1, 2, 3)]


def test_rounds_recorded_one_by_one_and_all_at_once_are_the_same(run: Callable[[str], Run]) -> None:
    steps, once = run("steps"), run("once")
    for done in range(1, 6):
        got = steps.record(entries(*FIVE[:done]), {})
        assert [one["participants"] for one in got] == [list(numbers) for numbers in FIVE[:done]]
    assert once.record(entries(*FIVE), {}) == got


def test_a_peer_that_starts_again_goes_on_behind_what_it_recorded(run: Callable[[str], Run]) -> None:
    before = run("own").record(entries(*FIVE[:4]), seen(0, 1, 2, 3))
    after = run("own").record(entries(*FIVE), seen(4))
    assert after[:4] == before
    assert all("own" in one for one in after)
    assert without(after, "own") == run("anew").record(entries(*FIVE), {})


def test_the_same_axes_are_pictured_whoever_is_there(made: tuple[Task, Setup], tmp_path: Path) -> None:
    """Peer 1 alone trains less than whole axes: it is not there at first, nor in the header."""
    task, setup = made
    mixed = Setup(
        task.captured,
        task.example,
        task.objective,
        dataclasses.replace(setup.run, width=(1.0, 0.5)),
        participants=4,
        device=torch.device("cpu"),
    )
    run = Run(tmp_path / "own", (task, mixed))
    with closing(run.chronicle):
        run.record(entries((0,)), {})
        first, second = run.record(entries((0,), (0, 1)), {})
    pictured = read(tmp_path / "own").header["pictured"]
    assert len(pictured) == 3
    assert list(first["windows"]) == list(second["windows"]) == pictured


SCORE = Evaluation(1.0, 0.75, 100)


def test_the_last_round_is_scored_by_a_later_start(run: Callable[[str], Run]) -> None:
    before = run("own").record(entries(*FIVE), seen(0, 1, 2, 3, 4), {1: SCORE})
    after = run("own").record(entries(*FIVE), {}, {4: SCORE})
    assert after[:4] == before[:4]
    assert after[4] == {**before[4], "evaluation": {"accuracy": 0.75, "loss": 1.0, "examples": 100}}
    again = run("own").record(entries(*FIVE), {}, {4: Evaluation(2.0, 0.5, 100)})
    assert again == after


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("rounds", [5, 6])
@pytest.mark.parametrize("turn", [0, 1, 2, 3, 4])
def test_rounds_of_another_past_are_recorded_anew_and_those_before_it_stay(
    run: Callable[[str], Run], turn: int, rounds: int, again: bool
) -> None:
    own, other = run("own"), entries(*FIVE[:turn], *[(3,)] * (rounds - turn))
    own.record(entries(*FIVE), seen(0, 1, 2, 3, 4), dict.fromkeys(range(5), SCORE))
    if again:
        own.chronicle.close()
        own = run("own")
    last = {rounds - 1: Evaluation(5.0, 0.1, 100)}
    after = own.record(other, {}, last)
    assert ["own" in one for one in after] == [round < turn for round in range(rounds)]
    losses = [one["evaluation"] and one["evaluation"]["loss"] for one in after]
    assert losses == [1.0] * turn + [None] * (rounds - turn - 1) + [5.0]
    assert without(after, "own", "evaluation") == without(run("anew").record(other, {}), "evaluation")


def test_a_shorter_history_than_that_on_file_is_compared_as_it_grows(run: Callable[[str], Run]) -> None:
    before = run("own").record(entries(*FIVE), seen(0, 1, 2, 3, 4))
    own, other = run("own"), entries(*FIVE[:4], (3,))
    for done in (2, 4):
        assert own.record(other[:done], {}) == before
    assert without(own.record(other, {}), "own") == run("anew").record(other, {})


def test_what_a_round_cost_counts_the_examples_of_that_round(run: Callable[[str], Run]) -> None:
    """A participant that comes back with more of them changes no line on file."""
    first = [Entry((Given(0, 100, 0.5, "a"), Given(1, 100, 0.25, "b")), ())]
    more = [Entry((Given(1, 900, 0.125, "c"),), ())]
    before = run("own").record(first, seen(0))
    assert run("own").record([*first, *more], {})[:1] == before


SPOILED: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "empty": (0, lambda text: b""),
    "half a header": (0, lambda text: text[:50]),
    "a last line without its end": (4, lambda text: text[:-1]),
    "zeros behind the last line": (5, lambda text: text + bytes(200) + b"\n"),
    "zeros for the last two lines": (3, lambda text: b"\n".join([*text.split(b"\n")[:4], bytes(999), b""])),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_a_crash_spoiled_is_written_anew(run: Callable[[str], Run], kind: str) -> None:
    """What was torn off, and what a system that went down had not written yet and gives back as zeros."""
    whole = run("own").record(entries(*FIVE), {})
    path, (left, spoil) = run("own").folder / FILE_NAME, SPOILED[kind]
    path.write_bytes(spoil(path.read_bytes()))
    again = run("own")
    assert again.chronicle.on_file() == left
    assert again.record(entries(*FIVE), {}) == whole
    assert run("own").chronicle.on_file() == 5


def test_bytes_are_those_that_travel(tmp_path: Path, made: tuple[Task, Setup]) -> None:
    counted = {}
    for kind in ("float32", "bfloat16"):
        run = Run(tmp_path / kind, made, Wire(kind))
        (line,) = run.record(entries((0, 1)), {})
        run.chronicle.close()
        first = read(run.folder).header["participants"][0]
        counted[kind] = (line["bytes"], first["bytes_per_round"])
        assert line["bytes"] == 2 * first["bytes_per_round"]
    assert [2 * value for value in counted["bfloat16"]] == list(counted["float32"])


def without(rounds: list[Round], *keys: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key not in keys} for one in rounds]
