"""Peers that die, hang and come back, at every point of a round: real processes, real signals.

In every case the others go on, or stop and say why; everybody who ends has the same history, no committed
round is lost, and the parameters are those that the contributions in the history lead to. Nothing here
depends on how fast anything happens: where somebody has to be back in time, the group holds before a round.
"""

import re
import shutil
import signal
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from group import Group, Nursery, Replay

from msfusion.commands.training import federation_of, simulation_of
from msfusion.records import read

pytestmark = [pytest.mark.slow, pytest.mark.processes]

POINTS = ("pull", "train", "push", "stage", "commit")
KINDS = ("SIGKILL", "SIGSTOP")
ROUND = 2  # in which it happens
LATER = ROUND + 2  # the round before which the group holds for those who come back
ROUNDS = LATER + 1
ALL = [0, 1, 2, 3]
SILENCE = {"peers.lease": 8.0}  # seconds after which a frozen peer or router is taken for dead


def matrix(*axes: Iterable[object], often: tuple[object, ...] | None = None) -> list[Any]:
    """The product; all but the cell ``often`` run with ``make deployed`` only."""
    return [
        pytest.param(*cell, marks=[] if cell == often else pytest.mark.deployed) for cell in product(*axes)
    ]


def strike(group: Group, victims: list[int], point: str, kind: str, hold: int) -> list[list[list[int]]]:
    """Start all, of whom the victims end or freeze at a point of a round, and the others hold before a later
    one; the histories that are committed on the victims' disks then.

    Several hold there, each alive for the others, until all have come, and end together: one that went early
    would leave the others time to copy shards.
    """
    group.hold(hold)
    alone = len(victims) == 1
    if point == "commit" and not alone:
        group.hold(ROUND + 1)
        group.start_all()
        group.wait(lambda: all(group.committed(n) == ROUND + 1 for n in ALL))
    else:
        for n in ALL:
            group.start(n, f"{point}:{ROUND}:{kind if alone else group.released}" if n in victims else None)
        if not alone:
            group.wait(lambda: all(f"holds at {point}" in group.text(n) for n in victims))
    if not alone:
        for n in victims:
            group.signal(n, signal.Signals[kind])
    group.wait(lambda: not any(group.alive(n) for n in victims))
    group.hold(hold)
    return [group.history(n) for n in victims]


def come_back(group: Group, victims: list[int], kind: str) -> None:
    group.released.touch()
    for n in victims:
        if kind == "SIGSTOP":
            group.signal(n, signal.SIGCONT)
        else:
            group.start(n)


def assert_as_replayed(
    group: Group, numbers: list[int], replay: Replay, before: Iterable[list[list[int]]] = ()
) -> list[list[int]]:
    histories = [group.history(n) for n in numbers]
    assert all(history == histories[0] for history in histories)
    assert len(histories[0]) == group.config.rounds
    assert all(histories[0][: len(past)] == past for past in before), "a committed round is lost"
    want = replay.model(histories[0])
    for n in numbers:
        end = group.model(n)
        assert all(torch.equal(end[name], value) for name, value in want.items())
    return histories[0]


def the_others_go_on(
    group: Group, replay: Replay, victims: list[int], point: str, kind: str, returns: bool
) -> None:
    survivors = [n for n in ALL if n not in victims]
    before = strike(group, victims, point, kind, LATER)
    group.wait(lambda: all(group.committed(n) == LATER for n in survivors))
    if returns:
        come_back(group, victims, kind)
        group.wait(lambda: all(group.committed(n) == LATER for n in victims))
    group.go_on()
    group.finished(ALL if returns else survivors)
    history = assert_as_replayed(group, ALL if returns else survivors, replay, before)
    complete = ROUND + (point == "commit")
    assert history[:complete] == [ALL] * complete
    assert history[complete:LATER] == [survivors] * (LATER - complete)
    assert history[LATER:] == [ALL if returns else survivors] * (ROUNDS - LATER)


@pytest.mark.parametrize(
    ("point", "kind", "returns"), matrix(POINTS, KINDS, (True, False), often=("push", "SIGKILL", False))
)
def test_one_peer(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str, kind: str, returns: bool
) -> None:
    with Group(nursery, tmp_path, rounds=ROUNDS, **silence(kind)) as group:
        the_others_go_on(group, replay, [2], point, kind, returns)


@pytest.mark.parametrize(
    ("point", "kind", "returns"), matrix(POINTS, KINDS, (True, False), often=("train", "SIGKILL", True))
)
def test_the_bootstrap_peer_that_is_the_lead(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str, kind: str, returns: bool
) -> None:
    with Group(nursery, tmp_path, rounds=ROUNDS, **silence(kind)) as group:
        the_others_go_on(group, replay, [0], point, kind, returns)


@pytest.mark.parametrize(
    ("point", "kind", "returns"), matrix(POINTS, KINDS, (True, False), often=("train", "SIGKILL", False))
)
def test_two_peers_with_two_replicas(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str, kind: str, returns: bool
) -> None:
    with Group(nursery, tmp_path, rounds=ROUNDS, **silence(kind), **{"peers.replicas": 2}) as group:
        the_others_go_on(group, replay, [1, 3], point, kind, returns)


def assert_stopped(group: Group, number: int) -> None:
    """A peer says that it cannot go on, and what was the last safe round, and does not go on."""
    group.wait_for_text(number, "nobody here has shards")
    assert f"stopped after round {group.committed(number)}, the last safe one" in group.text(number)
    assert group.alive(number)


def shared_out(group: Group, pair: list[int], round: int) -> bool:
    """Whether two have had a third beside them at this round, from whom they have the shards that only it
    had: any three have all. Who sees whom first, and whose link is lost again, is chance."""
    three = re.compile(rf"[34] here \(.*\), going on from round {round}$", re.MULTILINE)
    return len(pair) == 2 and any(three.search(group.text(n)) for n in pair)


@pytest.mark.parametrize(
    ("point", "kind", "returning"),
    matrix(POINTS, KINDS, ([], [2], [1, 2]), often=("pull", "SIGKILL", [2])),
)
def test_two_peers_and_some_shards_with_them(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str, kind: str, returning: list[int]
) -> None:
    """Where a home and its replica are gone, training stops, says what is missing, and goes on when one of
    the two is back."""
    patient = {"peers.deadline": 600.0}  # those who come back are awaited, however long they were away
    with Group(nursery, tmp_path, rounds=ROUNDS, **silence(kind), **patient) as group:
        before = strike(group, [1, 2], point, kind, LATER)
        assert_stopped(group, 0)
        complete = ROUND + (point == "commit")
        assert group.history(0) == group.history(3) == [ALL] * complete
        if not returning:
            return
        come_back(group, returning, kind)
        here = sorted({0, 3, *returning})
        group.wait(lambda: all(group.committed(n) == LATER for n in here))
        group.go_on()
        group.finished(here)
        history = assert_as_replayed(group, here, replay, before)
        assert history[:complete] == [ALL] * complete
        for round, given in enumerate(history[complete:], complete):
            assert set(given) <= set(here), history
            assert len(given) >= 3 or shared_out(group, given, round), history
        assert history[LATER:] == [here] * (ROUNDS - LATER)


@pytest.mark.parametrize(("point", "kind", "returns"), matrix(POINTS, KINDS, (True, False)))
def test_the_router_of_peers_that_only_connect_outwards(
    nursery: Nursery, tmp_path: Path, replay: Replay, point: str, kind: str, returns: bool
) -> None:
    """It goes when one of the peers is at a point of a round: all stop, and go on when it is back."""
    with Group(nursery, tmp_path, rounds=ROUNDS, **silence(kind)) as group:
        group.hold(LATER)
        group.start_router()
        for n in ALL:
            group.start(n, f"{point}:{ROUND}:SIGSTOP" if n == 1 else None, **group.behind_router)
        group.wait(lambda: not group.alive(1))
        group.signal("router", signal.Signals[kind])
        group.signal(1, signal.SIGCONT)
        for n in ALL:
            assert_stopped(group, n)
        before = [group.history(n) for n in ALL]
        assert all(past[:ROUND] == [ALL] * ROUND for past in before)
        if not returns:
            return
        if kind == "SIGSTOP":
            group.signal("router", signal.SIGCONT)
        else:
            group.start_router()
        group.wait(lambda: all(group.committed(n) == LATER for n in ALL))
        group.go_on()
        group.finished(ALL)
        history = assert_as_replayed(group, ALL, replay, before)
        assert history[LATER:] == [ALL] * (ROUNDS - LATER)


def test_the_whole_group(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    """A power cut in the middle of a round, and everybody is started again."""
    with Group(nursery, tmp_path, rounds=ROUNDS) as group:
        for n in ALL:
            group.start(n, f"push:{ROUND}:SIGSTOP" if n == 1 else None)
        group.wait(lambda: not group.alive(1))
        for n in ALL:
            group.signal(n, signal.SIGKILL)
        group.wait(lambda: not any(group.alive(n) for n in ALL))
        before = [group.history(n) for n in ALL]
        for n in ALL:
            group.log(n).unlink()
        group.start_all()
        group.finished()
        assert assert_as_replayed(group, ALL, replay, before) == [ALL] * ROUNDS
        assert not any(f"round {ROUND - 1} " in group.text(n) for n in ALL)


@pytest.mark.deployed
def test_half_a_group_in_round_0(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    """The others do not begin without it, though they have every shard: they might be cut off."""
    with Group(nursery, tmp_path) as group:
        group.hold(0)
        group.start_all()
        group.wait(lambda: all("4 here" in group.text(n) for n in ALL))
        for n in (0, 1):
            group.signal(n, signal.SIGKILL)
        group.wait(lambda: not group.alive(0) and not group.alive(1))
        group.wait_for_text(2, "waiting for 0, 1")
        before = group.text(2).count("4 here")
        for n in (0, 1):
            group.start(n)
        group.wait(lambda: group.text(2).count("4 here") > before)
        group.go_on()
        group.finished()
        assert assert_as_replayed(group, ALL, replay) == [ALL] * group.config.rounds


@pytest.mark.deployed
def test_a_slow_peer_is_left_out_and_counted(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    """It keeps its shards as before, but its contribution is not waited for."""
    with Group(nursery, tmp_path, rounds=ROUNDS, **{"peers.deadline": 15.0}) as group:
        group.hold(ROUND, who=[3])
        group.start_all()
        group.wait(lambda: all(group.committed(n) == ROUND + 1 for n in ALL))
        group.go_on()
        group.finished()
        history = assert_as_replayed(group, ALL, replay)
        assert history == [ALL] * ROUND + [[0, 1, 2]] + [ALL] * (ROUNDS - ROUND - 1)
        assert group.left(0)[ROUND] == {3: "contribution came after the deadline"}


@pytest.mark.deployed
def test_a_round_ends_though_who_is_drawn_hands_over_nothing(
    nursery: Nursery, tmp_path: Path, replay: Replay
) -> None:
    """One of four is drawn in each round, and one never trains: its rounds merge nothing."""
    settings = {"peers.deadline": 15.0, "sample": 0.25, "server_step": "constant"}
    with Group(nursery, tmp_path, rounds=ROUNDS, **settings) as group:
        attendance = simulation_of(group.config, federation_of(group.config), None).setup.attendance
        drawn = [attendance.present(round, ALL) for round in range(ROUNDS)]
        (hangs,) = drawn[ROUND]
        group.hold(0, who=[hangs])
        group.start_all()
        group.wait(lambda: all(group.committed(n) == ROUNDS for n in ALL))
        group.go_on()
        group.finished()
        assert assert_as_replayed(group, ALL, replay) == [[] if one == [hangs] else one for one in drawn]
        late = {hangs: "contribution came after the deadline"}
        assert group.left(0) == [late if one == [hangs] else {} for one in drawn]


@pytest.mark.deployed
def test_a_group_that_has_finished_hands_on_its_last_round(
    nursery: Nursery, tmp_path: Path, replay: Replay
) -> None:
    """One is killed before the last round, which the others end without it. Started again with all of them,
    it gets that round, and they export and score once more."""
    with Group(nursery, tmp_path, rounds=ROUNDS) as group:
        group.hold(ROUNDS - 1)
        group.start_all()
        group.wait(lambda: all(group.committed(n) == ROUNDS - 1 for n in ALL))
        group.signal(3, signal.SIGKILL)
        group.wait(lambda: not group.alive(3))
        group.go_on()
        group.finished(ALL[:3])
        before = [group.history(n) for n in ALL]
        for n in ALL:
            group.log(n).unlink()
            shutil.rmtree(group.folder / f"full-{n}", ignore_errors=True)
            group.start(n, evaluate=n == 1)
        group.finished()
        assert assert_as_replayed(group, ALL, replay, before) == [ALL] * (ROUNDS - 1) + [ALL[:3]]
        scores = {n: read(group.folder / str(n)).rounds[-1]["evaluation"] is not None for n in ALL}
        assert scores == {0: False, 1: True, 2: False, 3: False}


@pytest.mark.deployed
def test_two_that_ended_apart_come_together(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    """Each has played all rounds alone; then one of the two pasts counts, and both export it."""
    alone = {"participants": 2, "peers.start": 1, "peers.settle": 1.0}
    with Group(nursery, tmp_path, rounds=ROUNDS, **alone) as group:
        for n in (0, 1):
            group.start(n, connect=[], listen=["127.0.0.1:0"])
            group.finished([n])
            assert group.history(n) == [[n]] * ROUNDS
            group.log(n).unlink()
            shutil.rmtree(group.folder / f"full-{n}")
        group.start_all()
        group.finished()
        assert group.history(0) == group.history(1)
        for n in (0, 1):
            assert [one["participants"] for one in read(group.folder / str(n)).rounds] == group.history(n)
        assert group.model(0).keys() == group.model(1).keys()
        assert all(map(torch.equal, group.model(0).values(), group.model(1).values()))


@pytest.mark.deployed
def test_a_peer_that_hangs_is_left_behind(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    """Frozen for less than the lease, so that nobody takes it for dead: the group goes on without it. Before
    it is told of, the others have to train and merge, which may take a busy machine half a minute."""
    patient = {"peers.deadline": 20.0, "peers.lease": 300.0}
    with Group(nursery, tmp_path, rounds=ROUNDS, **patient) as group:
        group.hold(LATER)
        for n in ALL:
            group.start(n, f"train:{ROUND}:{group.released}" if n == 3 else None)
        # Who still pulls from one that freezes asks another once it takes it for dead: after the lease.
        group.wait(lambda: all(f"round {ROUND} train" in group.text(n) for n in ALL))
        group.wait_for_text(3, "holds at train")
        group.signal(3, signal.SIGSTOP)
        group.wait(lambda: not group.alive(3))
        before = [group.history(3)]
        # It may have looked at what the others hand over before it froze, or not.
        group.wait_for_text(0, " within 20 s: going on without it")
        assert re.search("3 (looked at no contributions|wrote no shards) within 20 s", group.text(0))
        group.wait(lambda: all(group.committed(n) == LATER for n in (0, 1, 2)))
        come_back(group, [3], "SIGSTOP")
        group.wait(lambda: group.committed(3) == LATER)
        group.go_on()
        group.finished()
        history = assert_as_replayed(group, ALL, replay, before)
        assert history[:ROUND] == [ALL] * ROUND
        assert all(3 not in one for one in history[ROUND:LATER])
        assert history[LATER:] == [ALL] * (ROUNDS - LATER)


def silence(kind: str) -> dict[str, float]:
    return SILENCE if kind == "SIGSTOP" else {}
