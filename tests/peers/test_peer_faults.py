"""Peers that die, hang and come back, at every point of a round: real processes, real signals.

In every case the others go on, everybody who ends has the same history, and the parameters are those that the
contributions in it lead to.
"""

import signal
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from group import Group, Nursery, Replay

POINTS = ("pull", "train", "push", "stage", "commit")
KINDS = ("SIGKILL", "SIGSTOP")
ROUND = 2  # in which it happens
SHORT, LONG = 5, 40  # rounds in all; the long runs leave time to come back


def assert_as_replayed(group: Group, numbers: list[int], replay: Replay) -> list[list[int]]:
    histories = [group.history(n) for n in numbers]
    assert all(history == histories[0] for history in histories)
    assert len(histories[0]) == group.config.rounds
    want = replay.model(histories[0])
    for n in numbers:
        end = group.model(n)
        assert all(torch.equal(end[name], value) for name, value in want.items())
    return histories[0]


def strike(group: Group, victims: list[int], point: str, kind: str) -> None:
    """Start all, of whom the victims end or freeze at a point of a round."""
    for n in range(group.config.participants):
        group.start(n, f"{point}:{ROUND}:{kind}" if n in victims else None)
    group.wait(lambda: not any(group.alive(n) for n in victims))


def come_back(group: Group, victims: list[int], kind: str) -> None:
    for n in victims:
        if kind == "SIGSTOP":
            group.signal(n, signal.SIGCONT)
        else:
            group.start(n)


def noticed(group: Group, victims: list[int]) -> bool:
    """Whether the survivors have formed a group of their own."""
    survivors = [n for n in range(4) if n not in victims]
    return all(f"{len(survivors)} here" in group.text(n) for n in survivors)


def one_dies(
    nursery: Nursery, folder: Path, replay: Replay, victim: int, point: str, kind: str, returns: bool
) -> None:
    with Group(nursery, folder, rounds=LONG if returns else SHORT) as group:
        strike(group, [victim], point, kind)
        survivors = [n for n in range(4) if n != victim]
        group.wait(lambda: noticed(group, [victim]))
        if returns:
            come_back(group, [victim], kind)
        group.finished(None if returns else survivors)
        history = assert_as_replayed(group, [0, 1, 2, 3] if returns else survivors, replay)
        assert all(one == [0, 1, 2, 3] for one in history[:ROUND])
        assert all(set(survivors) <= set(one) for one in history)
        away = [round for round, one in enumerate(history) if victim not in one]
        if returns:
            assert victim in history[-1]
            assert away == list(range(away[0], away[0] + len(away))) if away else True
        else:
            assert set(away) >= set(range(ROUND + 1, SHORT))


def matrix(cells: Iterable[tuple[object, ...]]) -> list[Any]:
    """The first cell runs with ``make test``, all of them with ``make deployed``."""
    first, *others = cells
    return [
        pytest.param(*first, marks=pytest.mark.slow),
        *(pytest.param(*cell, marks=[pytest.mark.slow, pytest.mark.deployed]) for cell in others),
    ]


def test_a_peer_is_killed_and_stays_away(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    one_dies(nursery, tmp_path, replay, 3, "push", "SIGKILL", returns=False)


@pytest.mark.parametrize(("point", "kind", "returns"), matrix(product(POINTS, KINDS, (True, False))))
def test_one_peer(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str, kind: str, returns: bool
) -> None:
    one_dies(nursery, tmp_path, replay, 2, point, kind, returns)


@pytest.mark.parametrize(
    ("point", "kind", "returns"),
    matrix(
        [
            ("train", "SIGKILL", True),
            ("pull", "SIGSTOP", False),
            ("push", "SIGKILL", False),
            ("stage", "SIGSTOP", True),
            ("commit", "SIGKILL", True),
        ]
    ),
)
def test_the_bootstrap_peer_that_is_the_lead(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str, kind: str, returns: bool
) -> None:
    one_dies(nursery, tmp_path, replay, 0, point, kind, returns)


@pytest.mark.parametrize("point", matrix((point,) for point in POINTS))
def test_two_peers_and_some_shards_with_them(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str
) -> None:
    """Where a home and its replica are gone, training stops, says what is missing, and goes on when one of
    the two is back."""
    with Group(nursery, tmp_path, rounds=SHORT) as group:
        strike(group, [1, 2], point, "SIGKILL")
        group.wait_for_text(0, "nobody here has shards")
        assert "stopped after round" in group.text(0)
        group.start(2)
        group.finished([0, 2, 3])
        history = assert_as_replayed(group, [0, 2, 3], replay)
        assert all(one == [0, 1, 2, 3] for one in history[:ROUND])
        assert all({0, 3} <= set(one) for one in history)


@pytest.mark.slow
def test_two_peers_with_two_replicas(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    with Group(nursery, tmp_path, rounds=SHORT, **{"peers.replicas": 2}) as group:
        strike(group, [1, 3], "train", "SIGKILL")
        group.finished([0, 2])
        history = assert_as_replayed(group, [0, 2], replay)
        assert history[-1] == [0, 2]


@pytest.mark.slow
def test_the_whole_group(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    """A power cut in the middle of a round, and everybody is started again."""
    with Group(nursery, tmp_path, rounds=LONG).start_all() as group:
        group.wait_for_text(1, "round 6 push")
        for n in range(4):
            group.signal(n, signal.SIGKILL)
        group.wait(lambda: not any(group.alive(n) for n in range(4)))
        for n in range(4):
            assert '"round":0' not in (group.folder / str(n) / "committed.json").read_text()
            group.log(n).unlink()
        group.start_all()
        group.finished()
        assert_as_replayed(group, [0, 1, 2, 3], replay)
        assert not any("round 0 " in group.text(n) for n in range(4))


@pytest.mark.slow
@pytest.mark.deployed
def test_a_slow_peer_is_left_out_and_counted(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    """Frozen for less than the lease: it is still of the group, but its contribution is not waited for."""
    settings = {"peers.deadline": 1.0, "peers.lease": 30.0, "peers.start": 4}
    with Group(nursery, tmp_path, rounds=LONG, **settings) as group:
        strike(group, [3], "train", "SIGSTOP")
        group.wait_for_text(0, f"round {ROUND + 1} push")
        group.signal(3, signal.SIGCONT)
        group.finished()
        history = assert_as_replayed(group, [0, 1, 2, 3], replay)
        assert 3 not in history[ROUND]
        assert history[-1] == [0, 1, 2, 3]
