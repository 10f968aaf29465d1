"""Pieces that get lost, damaged or late, handed over by a function in place of a network."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from msfusion.peers.disturbed import Disturbed
from msfusion.peers.pieces import Answered, Fetch, Sender, Wanted
from msfusion.peers.strip import CHUNK, Strip


@dataclass
class Bytes:
    data: bytes

    def to_bytes(self) -> bytes:
        return self.data


@dataclass
class Ok:
    payload: Bytes
    attachment: Bytes | None


@dataclass
class Reply:
    ok: Ok | None


def reply(strip: Strip, path: str, damage: int | None = None) -> Reply:
    piece = Sender().piece(strip, int(path.rpartition("/")[2]))
    assert piece is not None
    data, head = piece
    if damage is not None:
        data[damage] ^= 1
    return Reply(Ok(Bytes(bytes(data)), Bytes(head)))


def always(source: int) -> int:
    return 1


SOURCE = torch.randn(CHUNK // 2 + 3)  # two pieces and a bit


@pytest.mark.parametrize("wrong", ["no answer", "an error", "no hash", "one bit", "too short"])
def test_what_arrives_wrong_is_asked_for_again_from_the_next_source(wrong: str) -> None:
    there, target = Strip([SOURCE]), torch.zeros_like(SOURCE)
    asked: list[tuple[int, str]] = []

    def request(source: int, path: str, answered: Answered) -> None:
        asked.append((source, path))
        bad: dict[str, Any] = {
            "no answer": None,
            "an error": Reply(None),
            "no hash": Reply(Ok(Bytes(b"x"), None)),
            "one bit": reply(there, path, damage=77_777 % there.length(int(path[-1]))),
            "too short": reply(Strip([SOURCE[:5]]), "x/0"),
        }
        answered(bad[wrong] if source == 7 else reply(there, path))

    received: Counter[str] = Counter()
    wanted = [Wanted(lambda: [7, 8], "given/d/0", Strip([target]))]
    Fetch(wanted, request, always, received).run(lambda: True)
    assert torch.equal(target, SOURCE)
    assert received == {"given": len(there)}
    assert {source for source, _ in asked} == {7, 8}


def test_nothing_is_written_once_it_is_no_longer_wanted() -> None:
    there, target = Strip([SOURCE]), torch.zeros_like(SOURCE)
    late: list[tuple[str, Answered]] = []
    wanted = [Wanted(lambda: [7], "given/d/0", Strip([target]))]
    fetch = Fetch(wanted, lambda source, path, answered: late.append((path, answered)), always, Counter())
    with pytest.raises(Disturbed):
        fetch.run(lambda: not late)
    for path, answered in late:
        answered(reply(there, path))
    assert len(late) == 3
    assert not target.any()


def test_there_are_pieces_of_what_there_is_only() -> None:
    sender = Sender()
    assert sender.piece(Strip([SOURCE]), 3) is None
    assert sender.piece(Strip([SOURCE]), -1) is None
    empty = sender.piece(Strip([]), 0)
    assert empty is not None
    assert not empty[0]
