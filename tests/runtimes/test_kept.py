"""Memories of a participant on disk."""

from pathlib import Path

import torch

from msfusion.learn.memory import Memory
from msfusion.runtimes.kept import Kept


def memory(value: float) -> Memory:
    return Memory({"a": ((0, 1),)}, {"w": torch.tensor([value])}, {})


def value(found: Memory | None) -> float | None:
    return None if found is None else float(found.values["w"])


def test_the_last_two_stay(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 0, torch.device("cpu"))
    for round in range(4):
        kept.keep(round, memory(round))
    assert [value(kept.before(round)) for round in (2, 3, 4)] == [None, 2, 3]


def test_what_comes_after_a_round_that_is_played_again_is_gone(tmp_path: Path) -> None:
    """It is of a past that the group did not go on from."""
    kept = Kept(tmp_path, 0, torch.device("cpu"))
    for round in (7, 8, 9):
        kept.keep(round, memory(round))
    kept.keep(5, memory(50))
    assert [value(kept.before(round)) for round in (5, 6, 10)] == [None, 50, 50]


def test_foreign_files_are_let_be(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 0, torch.device("cpu"))
    foreign = [tmp_path / "²²²²²².safetensors", tmp_path / "own.safetensors"]
    for file in foreign:
        file.touch()
    kept.keep(1, memory(1))
    assert value(kept.before(2)) == 1
    assert all(file.exists() for file in foreign)
