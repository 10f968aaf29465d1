"""Pieces that travel between sessions on loopback."""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from group import free_port

import msfusion.peers.network
import msfusion.peers.transport
from msfusion.errors import UserError
from msfusion.peers.board import Board
from msfusion.peers.certificates import add_member, new_group
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.network import Network, Serve
from msfusion.peers.pieces import Wanted
from msfusion.peers.settings import Link
from msfusion.peers.states import State, Version
from msfusion.peers.strip import Strip
from msfusion.peers.transport import configuration, opened

VALUES = torch.arange(1000.0)
FIRST = Version(0, "first")


class Sessions:
    """Peers without a training."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.all: list[Network] = []

    def open(self, serve: Serve, **more: Any) -> tuple[Network, Board]:
        number = len(self.all)
        board = Board(State(number, f"s{number}", 1, FIRST, FIRST), patience=60)
        link = Link([self.address] if number else [], [self.address if not number else "127.0.0.1:0"])
        config = configuration(link, str(number), "test", 10.0)
        network = Network(config, "test", "run", board, serve, **more)
        self.all.append(network)
        return network, board


def until(happens: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < limit
        time.sleep(0.05)


def nothing(path: Sequence[str]) -> None:
    return None


def test_both_of_one_number_are_told() -> None:
    sessions, told = Sessions(), [threading.Event(), threading.Event()]
    try:
        sessions.open(nothing, twin=told[0].set)
        sessions.open(nothing)
        board = Board(State(0, "again", 1, FIRST, FIRST), patience=60)
        config = configuration(Link([sessions.address], ["127.0.0.1:0"]), "0", "test", 10.0)
        sessions.all.append(Network(config, "test", "run", board, nothing, twin=told[1].set))
        assert all(event.wait(30) for event in told)
    finally:
        for session in sessions.all:
            session.close()


def test_a_port_in_use_is_named() -> None:
    sessions = Sessions()
    network, board = sessions.open(nothing)
    try:
        config = configuration(Link([], [sessions.address]), "1", "test", 10.0)
        with pytest.raises(UserError, match=f"at tcp/{sessions.address}, got"):
            Network(config, "test", "run", board, nothing)
    finally:
        network.close()


def apart(certificates: Path, *, expired: bool) -> list[Path]:
    """The folders of two, of whom 1 lacks the certificate of 0, or has an expired one of its own."""
    new_group(certificates, "test")
    add_member(certificates, "0")
    add_member(certificates, "1", days=-1 if expired else 365)
    other = Path(shutil.copytree(certificates, certificates.with_name("other")))
    if not expired:
        (other / "0.pem").unlink()
    return [certificates, other]


@pytest.mark.parametrize("outbound", [False, True])
def test_who_gets_no_answer_is_told_once(monkeypatch: pytest.MonkeyPatch, *, outbound: bool) -> None:
    monkeypatch.setattr(msfusion.peers.network, "_ALONE", 1.0)
    told: list[bool] = []
    address = f"127.0.0.1:{free_port()}"
    config = configuration(Link([address], outbound=outbound), "0", "test", 10.0)
    board = Board(State(0, "s0", 1, FIRST, FIRST), patience=60)

    def live() -> None:
        Network(config, "test", "run", board, nothing, alone=told.append).close()

    if outbound:  # it waits for a router
        thread = threading.Thread(target=live)
        thread.start()
        until(lambda: bool(told))
        with opened(configuration(Link([], [address]), "router", "test", 10.0, router=True)):
            thread.join(30)
        assert not thread.is_alive()
    else:
        network = Network(config, "test", "run", board, nothing, alone=told.append)
        until(lambda: bool(told))
        time.sleep(2.5)
        network.close()
    assert told == [False]


@pytest.mark.parametrize("expired", [False, True])
def test_who_hears_nobody_is_told_whether_there_is_a_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, expired: bool
) -> None:
    monkeypatch.setattr(msfusion.peers.network, "_ALONE", 1.0)
    monkeypatch.setattr(msfusion.peers.transport, "check_own", lambda folder, name: None)
    told: list[list[bool]] = [[], []]
    address = f"127.0.0.1:{free_port()}"
    networks: list[Network] = []
    try:
        for n, folder in enumerate(apart(tmp_path / "certs", expired=expired)):
            link = Link([address] if n else [], [address if not n else "127.0.0.1:0"], folder)
            board = Board(State(n, f"s{n}", 1, FIRST, FIRST), patience=60)
            config = configuration(link, str(n), "test", 10.0)
            networks.append(Network(config, "test", "run", board, nothing, alone=told[n].append))
        until(lambda: all((not expired) in own for own in told))
        time.sleep(1.5)
        assert (True in told[1]) is not expired
    finally:
        for network in networks:
            network.close()


def test_who_hears_others_is_not_told_that_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msfusion.peers.network, "_ALONE", 1.0)
    sessions, told = Sessions(), list[bool]()
    try:
        sessions.open(nothing)
        _, board = sessions.open(nothing, alone=told.append)
        assert board.wait(lambda: len(board.here()) == 2, 30)
        told.clear()
        time.sleep(2.5)
        assert told == []
    finally:
        for session in sessions.all:
            session.close()


def test_names_on_certificates_are_of_any_letters(tmp_path: Path) -> None:
    names, address = ["müller", "日本²"], f"127.0.0.1:{free_port()}"
    new_group(tmp_path, "test")
    for name in names:
        add_member(tmp_path, name)
    networks: list[Network] = []
    try:
        for n, name in enumerate(names):
            link = Link([address] if n else [], [address if not n else "127.0.0.1:0"], tmp_path)
            board = Board(State(n, f"s{n}", 1, FIRST, FIRST), patience=60)
            networks.append(Network(configuration(link, name, "test", 10.0), "test", "run", board, nothing))
        assert board.wait(lambda: len(board.here()) == 2, 30)
    finally:
        for network in networks:
            network.close()


def test_a_request_to_a_peer_that_goes_is_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msfusion.peers.network, "_PATIENCE", 3600.0)
    sessions, asked, over = Sessions(), threading.Event(), threading.Event()

    def silent(path: Sequence[str]) -> Strip | None:
        asked.set()
        over.wait()
        return None

    network, board = sessions.open(nothing)
    try:
        sessions.open(silent)
        sessions.open(lambda path: Strip([VALUES]))
        assert board.wait(lambda: len(board.here()) == 3, 30)

        def goes() -> None:
            asked.wait()
            board.left(1, "s1")

        threading.Thread(target=goes).start()
        got = torch.zeros(1000)
        wanted = Wanted(lambda: [n for n in (1, 2) if n in board.here()], "values/all", Strip([got]))
        network.fetch([wanted], lambda: True)
        assert torch.equal(got, VALUES)
        board.arrived(1, "s1")

        def comes_back() -> None:
            asked.wait()
            board.arrived(1, "s1")

        asked.clear()
        threading.Thread(target=comes_back).start()
        assert network.text([1], "history/all") is None
    finally:
        over.set()
        for one in sessions.all:
            one.close()


def test_nothing_is_fetched_that_is_not_wanted() -> None:
    sessions = Sessions()
    network, _ = sessions.open(nothing)
    try:
        with pytest.raises(Disturbed):
            network.fetch([Wanted(list, "values/all", Strip([torch.zeros(1)]))], lambda: False)
    finally:
        network.close()


@pytest.mark.parametrize("loser", [0, 2])
def test_a_link_that_does_not_come_back_by_itself_is_made_anew(loser: int) -> None:
    """A peer has lost the token of another, who never sends it again, as all is well from there."""
    sessions = Sessions()
    splits: list[list[int]] = []
    try:
        boards = [
            sessions.open(lambda path: Strip([VALUES]), split=splits.append, wait=1.0)[1] for _ in range(3)
        ]
        assert all(board.wait(lambda b=board: len(b.here()) == 3, 30) for board in boards)  # type: ignore[misc]
        boards[loser].left(1, "s1")
        assert 1 not in boards[loser].here()
        assert boards[loser].wait(lambda: bool(splits), 30)
        assert all(board.wait(lambda b=board: len(b.here()) == 3, 30) for board in boards)  # type: ignore[misc]
        assert [1] in splits
        for n, network in enumerate(sessions.all):
            got = torch.zeros(1000)
            wanted = Wanted(lambda n=n: [(n + 1) % 3], "values/all", Strip([got]))  # type: ignore[misc]
            network.fetch([wanted], lambda: True)
            assert torch.equal(got, VALUES)
    finally:
        for one in sessions.all:
            one.close()


def test_who_leaves_leaves_no_threads_behind() -> None:
    sessions, before = Sessions(), set(threading.enumerate())
    sessions.open(nothing)
    _, board = sessions.open(nothing)
    assert board.wait(lambda: len(board.here()) == 2, 30)
    assert len(threading.enumerate()) > len(before)
    for network in sessions.all:
        network.close()
    limit = time.monotonic() + 30  # Zenoh's own, from which callbacks are called, end after their session
    while not set(threading.enumerate()) <= before:
        assert time.monotonic() < limit, set(threading.enumerate()) - before
        time.sleep(0.05)


def test_nobody_stops_a_peer_by_what_it_asks_or_says() -> None:
    """Requests with wildcards, for nonsense, and states that cannot be true, more than there are threads."""
    sessions = Sessions()
    try:
        sessions.open(lambda path: Strip([VALUES]) if path == ["values", "all"] else Version.parse(path[1]))  # type: ignore[arg-type, return-value]
        asking, board = sessions.open(nothing)
        assert board.wait(lambda: len(board.here()) == 2, 30)
        session = asking._session
        for path in ("**", "0/**", "*/values/x/0", "0/values/no-version/0", "0/values/0", "0/x", "0/a/x"):
            for _ in range(4):
                list(session.get(f"msfusion/test/run/ask/{path}", timeout=0.2))
        got = torch.zeros(1000)
        asking.fetch([Wanted(lambda: [0], "values/all", Strip([got]))], lambda: True)
        assert torch.equal(got, VALUES)
    finally:
        for one in sessions.all:
            one.close()


def test_a_state_that_cannot_be_true_is_passed_over() -> None:
    sessions = Sessions()
    try:
        asked: list[int] = []

        def sound(state: State) -> bool:
            asked.append(state.examples)
            return state.examples < 100

        _, board = sessions.open(nothing, sound=sound)
        _, other = sessions.open(nothing)
        assert board.wait(lambda: 1 in board.here(), 30)
        other.update(examples=100)
        until(lambda: 100 in asked)
        assert board.here()[1].examples == 1
        other.update(examples=7)
        assert board.wait(lambda: board.here()[1].examples == 7, 30)
    finally:
        for one in sessions.all:
            one.close()
