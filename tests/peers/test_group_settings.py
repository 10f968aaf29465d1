"""Settings of a group that cannot work are refused in one sentence."""

from pathlib import Path
from typing import Any

import pytest
from group import PRESET

from msfusion.commands import peer as command
from msfusion.errors import UserError
from msfusion.peers.board import Board
from msfusion.peers.settings import Link, Peers, check_group
from msfusion.peers.states import State, Version
from msfusion.peers.teller import Teller

FIRST = Version(0, "first")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"names": ["anna", "ben", "anna"]}, "each name in peers.names once, got 'anna' twice"),
        *(({"names": ["anna", f"b{sign}n"]}, "expected names in peers.names with") for sign in "/*?#$"),
        ({"names": ["anna", ""]}, "got ''"),
        *(({"group": f"a{sign}b"}, "expected a peers.group with") for sign in "/*?#$"),
        ({"group": ""}, "got ''"),
        ({"start": 4}, "expected a peers.start of at most 3, .* got 4"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_group(Peers(**settings), 3)


def test_what_can_work_is_not() -> None:
    check_group(Peers(), 1)
    check_group(Peers(group="Klinik-Nord 2", names=["anna", "Jörg", "c.d_e"], start=3), 3)


def test_the_command_refuses_them(tmp_path: Path) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text(PRESET)
    with pytest.raises(UserError, match=r"got 'a/\*\*'"):
        command.route(str(preset), {"peers.group": "a/**"}, Link())
    own = {"link": Link(), "own_data": False, "out": tmp_path / "run", "evaluate": False, "export": None}
    with pytest.raises(UserError, match=r"got 'a/\*\*'"):
        command.run(str(preset), {"peers.group": "a/**"}, participant="0", **own)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "hidden"),
    [
        ({"connect": ["anna:7447"]}, True),
        ({"connect": ["127.0.0.1:1", "anna:7447"], "listen": ["localhost:0", "[::1]:0"]}, True),
        ({"connect": ["anna:7447"], "listen": ["0.0.0.0:7447"]}, False),
        ({"connect": ["anna:7447"], "outbound": True}, False),
        ({"connect": ["127.0.0.1:7447"]}, False),
        ({"listen": ["0.0.0.0:7447"]}, False),
        ({}, False),
    ],
    ids=str,
)
def test_who_connects_to_others_and_listens_for_none_is_known(more: dict[str, Any], hidden: bool) -> None:
    assert Link(**more, insecure=True).hidden is hidden


def test_where_nobody_is_heard_is_named() -> None:
    said: list[str] = []
    teller = Teller(Board(State(0, "s", 1, FIRST, FIRST), patience=60), [], said.append)
    teller.alone(Link(), "clinic", linked=False)  # others come when they come
    assert not said
    teller.alone(Link(["127.0.0.1:1", "127.0.0.1:2"]), "clinic", linked=False)
    teller.alone(Link(), "clinic", linked=True)
    assert "nobody answers at 127.0.0.1:1, 127.0.0.1:2: check" in said[0]
    assert "nobody of group 'clinic'" in said[1]


def test_what_helps_where_two_have_no_link_is_named() -> None:
    said: list[str] = []
    teller = Teller(Board(State(0, "s", 1, FIRST, FIRST), patience=60), ["anna", "ben"], said.append)
    teller.split([1])
    teller.hidden(3)
    for text in said:
        assert text.index("--listen HOST:PORT") < text.index("--outbound")
    assert "no link to ben" in said[0]
    assert "3 participants" in said[1]
