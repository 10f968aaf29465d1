"""The rounds of a run on a disk: what is kept of them, what a round writes, and what a crash leaves."""

import gc
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from msfusion.core.axes import AxisMap, Fixed
from msfusion.errors import UserError
from msfusion.learn import shards
from msfusion.learn.shards import Spec
from msfusion.peers import agreement, past
from msfusion.peers.course import Course
from msfusion.peers.disk import Disk
from msfusion.peers.histories import Histories
from msfusion.peers.layout import Layout
from msfusion.peers.past import BLOCKS, HISTORY, Block, History, Past
from msfusion.peers.states import Entry, Given, Left, State, Version

FIRST = Version(0, "first")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "BLOCK", 10)


def entry(round: int, digest: str = "merged") -> Entry:
    """Two contributions in round ``round``; a model shift of ratio 0.5."""
    given = tuple(Given(n, 50, 0.25, f"{digest}{round:04d}{n}") for n in (0, 1))
    return Entry(given, (Left(2, "not here"),), 1.0, (1.0, 4.0))


def ones(tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.fill_(1)


def disk_in(folder: Path) -> Disk:
    tensors = {"w": Spec(torch.float32, (4, 3))}
    return Disk(folder, Layout(AxisMap({"w": (Fixed(4), Fixed(3))}, {}), tensors, 2), FIRST)


def play(disk: Disk, rounds: int, at: Version = FIRST) -> Version:
    """Go through rounds as a member does."""
    for round in range(at.round, at.round + rounds):
        history = disk.following(at, entry(round))
        at = agreement.following(at, entry(round))
        disk.write(at, 0, history, ones)
        disk.remember(at, history)
        disk.commit(at)
    return at


def path_of(rounds: int) -> list[Version]:
    path = [FIRST]
    for round in range(rounds):
        path.append(agreement.following(path[-1], entry(round)))
    return path


def test_full_blocks_lie_in_files_and_the_rest_with_the_version(tmp_path: Path) -> None:
    """25 rounds in blocks of 10: rounds 0 to 9 and 10 to 19 in files that are named after versions 10 and 20,
    and 5 with version 25."""
    disk = disk_in(tmp_path)
    last, path = play(disk, 25), path_of(25)
    assert last == path[25]
    files = sorted((tmp_path / "blocks").iterdir())
    assert [file.name for file in files] == [f"{path[10].text}.json", f"{path[20].text}.json"]
    blocks = [BLOCKS.validate_json(file.read_bytes()) for file in files]
    assert [block.base for block in blocks] == [FIRST, path[10]]
    assert blocks[1].entries == tuple(map(entry, range(10, 20)))
    history = disk.history(last)
    assert history == History(path[24].lineage, path[20], tuple(map(entry, range(20, 25))))
    assert list(disk.past.entries(history)) == list(map(entry, range(25)))


@pytest.mark.parametrize("rounds", [0, 1, 9, 10, 11, 20, 21])
def test_the_last_round_is_never_in_a_block(tmp_path: Path, rounds: int) -> None:
    """Its model shift may come later. 10 rounds: none in a block; 11: ten in a block, one beside it."""
    disk = disk_in(tmp_path)
    history = disk.history(play(disk, rounds))
    assert history is not None
    assert history.base.round == max(0, rounds - 1) // 10 * 10
    for start in range(rounds + 1):
        assert list(disk.past.entries(history, start)) == list(map(entry, range(start, rounds)))


def test_what_follows_a_version_is_known_from_the_base_on() -> None:
    path = path_of(25)
    history = History(path[24].lineage, path[20], tuple(map(entry, range(20, 25))))
    assert history.since(path[25]) == ()
    assert history.since(path[23]) == (entry(23), entry(24))
    assert history.since(path[20]) == history.entries
    assert history.since(path[19]) is None
    assert history.since(Version(23, "another")) is None


def test_a_round_writes_as_much_after_many_rounds_as_after_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    write = Path.write_bytes

    def counted(path: Path, content: bytes) -> int:
        nonlocal written
        written += len(content)
        return write(path, content)

    disk = disk_in(tmp_path)
    at = play(disk, 110)
    monkeypatch.setattr(Path, "write_bytes", counted)
    early, at = -written, play(disk, 10, at)
    early += written
    at = play(disk, 90, at)
    late = -written
    play(disk, 10, at)
    late += written
    assert early == late > 0


def test_memory_holds_no_more_entries_after_many_rounds_than_after_few(tmp_path: Path) -> None:
    """At round 15 and 95, five of the rounds with the version: what disk and course hold of them."""
    disk, course = disk_in(tmp_path), Course(Setting(), FIRST)  # type: ignore[arg-type]

    def held_after(rounds: int) -> int:
        at = play(disk, rounds - course.version.round, course.version)
        history = disk.history(at)
        assert history is not None
        course.go(at, history, disk.past)
        del history
        gc.collect()
        return sum(type(one) is Entry for one in gc.get_objects())

    assert held_after(15) == held_after(95) < 20
    assert len(disk._histories) <= 2


class Setting:
    """Stands for a setup; its overlap rate tells which rounds with which shift led to it."""

    def first_overlap(self) -> Any:
        return ()

    def next_overlap(self, overlap: Any, round: int, shift: float | None) -> Any:
        return (*overlap[-30:], (round, shift))

    def learner(self, overlap: Any) -> Any:
        return SimpleNamespace(overlap=overlap)


def test_a_course_gets_to_the_same_point_by_steps_and_at_once(tmp_path: Path) -> None:
    """Each of 25 rounds has the shift sqrt(1 / 4)."""
    disk, path = disk_in(tmp_path), path_of(25)
    steps, once = (Course(Setting(), FIRST) for _ in range(2))  # type: ignore[arg-type]
    for version in path[1:]:
        play(disk, 1, steps.version)
        history = disk.history(version)
        assert history is not None
        steps.go(version, history, disk.past)
    once.go(version, history, disk.past)
    assert steps.learner == once.learner == SimpleNamespace(overlap=tuple((r, 0.5) for r in range(25)))
    back = History("", FIRST, ())
    once.go(FIRST, back, disk.past)
    assert once.learner.overlap == ()  # type: ignore[attr-defined]


class Killed(BaseException):
    """Nothing that is run after it happened in a real process."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes one of the next steps on the disk the last; of what a file should get, half gets there."""
    left = [-1]
    write, move, sync = Path.write_bytes, Path.replace, shards.sync

    def last() -> bool:
        left[0] -= 1
        return left[0] == -1

    def write_bytes(path: Path, content: bytes) -> int:
        if last():
            write(path, content[: len(content) // 2])
            raise Killed
        return write(path, content)

    def replace_path(path: Path, target: Path) -> Path:
        if last():
            raise Killed
        return move(path, target)

    def sync_path(path: Path) -> None:
        if last():
            raise Killed
        sync(path)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(Path, "replace", replace_path)
    monkeypatch.setattr(shards, "sync", sync_path)
    return lambda step: left.__setitem__(0, step)


def test_a_kill_at_any_point_of_a_round_that_fills_a_block_loses_nothing(
    tmp_path: Path, killed_at: Callable[[int], None]
) -> None:
    """Blocks are written in rounds 10 and 20; killed in round 20, again and again, a step later each time."""
    path = path_of(21)
    play(disk_in(tmp_path / "before"), 20)
    for step in range(1000):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "before", folder)
        killed_at(step)
        try:
            play(disk_in(folder), 1, path[20])
        except Killed:
            killed_at(-1)
        else:
            break
        again = disk_in(folder)
        assert not list(folder.glob("**/*.draft"))
        at = again.committed()
        assert at in path[20:]
        history = again.history(at)
        assert history is not None
        assert list(again.past.entries(history)) == list(map(entry, range(at.round)))
        again.discard_after(at)
        history = again.history(play(again, 22 - at.round, at))
        assert history is not None
        assert list(again.past.entries(history)) == list(map(entry, range(22)))
    assert step > 12  # block, history, commit: each is written, synced, named and synced again


def test_a_history_from_before_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    disk = disk_in(tmp_path)
    last = play(disk, 11)
    (block,) = (tmp_path / "blocks").iterdir()
    history = disk.history(last)
    assert history is not None
    block.write_text("{")
    with pytest.raises(UserError, match=r"blocks/000010-.* delete the peer's folder"):
        list(disk.past.entries(history))
    (tmp_path / "versions" / last.text / "history.json").write_text('{"parent": "before", "entries": []}')
    with pytest.raises(UserError, match="written by this version of msfusion"):
        disk_in(tmp_path)


class Network:
    """Answers with what lies on another peer's disk."""

    def __init__(self, other: Disk, without: str = "", false: Mapping[str, bytes] | None = None) -> None:
        self._other, self._without, self._false = other, without, false or {}
        self.asked: list[str] = []

    def text(self, sources: list[int], path: str) -> bytes | None:
        self.asked.append(path)
        kind, _, text = path.partition("/")
        if path == self._without:
            return None
        if path in self._false:
            return self._false[path]
        if kind == "block":
            return self._other.past.text(Version.parse(text))
        history = self._other.history(Version.parse(text))
        assert history is not None
        return HISTORY.dump_json(history)


def histories(own: Disk, network: Network, version: Version, participants: int = 4) -> Histories:
    state = State(0, "here", 1, FIRST, FIRST)
    states = {0: state, 1: replace(state, number=1, committed=version)}
    board = SimpleNamespace(here=lambda: states, own=state)
    return Histories(own, board, network, 2, participants, measured=True)  # type: ignore[arg-type]


def test_a_peer_gets_the_blocks_that_it_lacks_and_no_others(tmp_path: Path) -> None:
    """It was here for 11 rounds, so it has the first block, of the three before version 35."""
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last, path = play(other, 35), path_of(35)
    play(own, 11)
    network = Network(other)
    history = histories(own, network, last).of(last)
    assert history == other.history(last)
    assert network.asked == [f"history/{last.text}", f"block/{path[30].text}", f"block/{path[20].text}"]
    again = disk_in(tmp_path / "own")
    assert list(again.past.entries(history)) == list(map(entry, range(35)))


def test_a_history_whose_blocks_are_not_to_be_had_is_not_kept(tmp_path: Path) -> None:
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last, path = play(other, 35), path_of(35)
    network = Network(other, without=f"block/{path[10].text}")
    assert histories(own, network, last).of(last) is None
    assert own.history(last) is None
    assert not own.past.has(path[30])
    assert not own.past.has(path[20])


def test_a_block_that_does_not_lead_to_its_version_is_not_kept(tmp_path: Path) -> None:
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last, path = play(other, 35), path_of(35)
    true = BLOCKS.validate_json(other.past.text(path[20]))
    false = BLOCKS.dump_json(replace(true, entries=(*true.entries[1:], true.entries[0])))
    network = Network(other, false={f"block/{path[20].text}": false})
    assert histories(own, network, last).of(last) is None
    assert not any(own.past.has(path[round]) for round in (10, 20, 30))


@pytest.mark.parametrize("damaged", ["block", "history"])
def test_bytes_that_are_none_are_passed_over(tmp_path: Path, damaged: str) -> None:
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last, path = play(other, 35), path_of(35)
    where = f"block/{path[20].text}" if damaged == "block" else f"history/{last.text}"
    assert histories(own, Network(other, false={where: b"{"}), last).of(last) is None


def test_a_history_of_another_version_is_passed_over(tmp_path: Path) -> None:
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last = play(other, 35)
    false = HISTORY.dump_json(other.history(play(other, 1, last)))
    assert histories(own, Network(other, false={f"history/{last.text}": false}), last).of(last) is None


@pytest.mark.parametrize("rounds", [5, 15])
def test_a_history_of_participants_that_there_are_not_is_passed_over(tmp_path: Path, rounds: int) -> None:
    """It tells of 0, 1 and, left out, 2."""
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last = play(other, rounds)
    assert histories(own, Network(other), last, participants=2).of(last) is None
    assert histories(own, Network(other), last, participants=3).of(last) == other.history(last)


def test_an_empty_block_that_leads_to_itself_ends_the_asking(tmp_path: Path) -> None:
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last, path = play(other, 35), path_of(35)
    false = BLOCKS.dump_json(Block(path[30], ()))
    network = Network(other, false={f"block/{path[30].text}": false})
    assert histories(own, network, last).of(last) is None


def test_blocks_that_a_disk_has_lost_are_got_from_the_others(tmp_path: Path) -> None:
    other, own = disk_in(tmp_path / "other"), disk_in(tmp_path / "own")
    last = play(other, 35)
    assert play(own, 35) == last
    shutil.rmtree(tmp_path / "own" / "blocks")
    own = disk_in(tmp_path / "own")
    history = histories(own, Network(other), last).of(last)
    assert history is not None
    assert list(own.past.entries(history)) == list(map(entry, range(35)))


def test_blocks_are_kept_from_the_first_on(tmp_path: Path, killed_at: Callable[[int], None]) -> None:
    """Killed while it keeps what it got: where a block lies, all before it do."""
    other = disk_in(tmp_path / "other")
    last, path = play(other, 35), path_of(35)
    for step in range(100):
        own = disk_in(tmp_path / str(step))
        killed_at(step)
        try:
            histories(own, Network(other), last).of(last)
        except Killed:
            killed_at(-1)
        else:
            break
        here = [Past(tmp_path / str(step) / "blocks").has(path[round]) for round in (10, 20, 30)]
        assert here == sorted(here, reverse=True)
        assert disk_in(tmp_path / str(step)).history(last) is None or all(here)
    assert step == 16  # three blocks and the history, four steps each


def test_a_block_of_another_past_does_no_harm(tmp_path: Path) -> None:
    """Rounds that the group plays anew from round 9 on lead to another version 10, with its own block."""
    disk, path = disk_in(tmp_path), path_of(11)
    play(disk, 11)
    stray = Block(FIRST, (*map(entry, range(9)), entry(9, "another")))
    other = agreement.following(path[9], entry(9, "another"))
    disk.past.seal(other, stray)
    history = disk.history(path[11])
    assert history is not None
    assert list(disk.past.entries(history)) == list(map(entry, range(11)))
