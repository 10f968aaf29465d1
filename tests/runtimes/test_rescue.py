"""Whatever error ends a run, the rounds that it has played are saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import SIZES, TEST, net, participants, play, same, settings
from torch.utils.data import Dataset

import msfusion
from msfusion.core.momentum import Momentum
from msfusion.records import read
from msfusion.runtimes import checkpoint


class Failing(Dataset[Any]):
    """Cannot be read any more after so many reads."""

    def __init__(self, data: Dataset[Any], reads: int) -> None:
        self._data, self._left = data, reads

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise OSError("stale file handle")
        return self._data[index]


READS = 9 * 3  # of the second participant, whose batches have nine examples, in three steps of a round


def second_fails(rounds: float, out: Path, **changes: Any) -> None:
    own: list[Dataset[Any]] = [*participants()]
    own[1] = Failing(own[1], int(rounds * READS))
    run = settings(rounds=5, workers=1, evaluate_every=9, **changes)
    msfusion.simulate(net(norm=False), own, TEST, run, out=out)


def test_data_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="stale"):
        second_fails(3.5, tmp_path / "broken")
    assert checkpoint.load(tmp_path / "broken")[1]["rounds_done"] == 3
    changes: dict[str, Any] = {"rounds": 5, "workers": 1, "evaluate_every": 9}
    for name in ("broken", "unbroken"):
        play(tmp_path / name, resume=name == "broken", model=net(norm=False), **changes)
    assert same(*(checkpoint.load(tmp_path / name)[0] for name in ("broken", "unbroken")))


def test_the_rounds_are_saved_where_batch_norm_cannot_be_estimated(tmp_path: Path) -> None:
    own = [
        Failing(data, int(2.5 * 3 * min(size, 16))) for data, size in zip(participants(), SIZES, strict=True)
    ]
    run = settings(rounds=5, workers=1, evaluate_every=9)
    with pytest.raises(OSError, match="stale"), pytest.warns(UserWarning, match="old statistics.*stale"):
        msfusion.simulate(net(), own, TEST, run, out=tmp_path)
    assert checkpoint.load(tmp_path)[1]["rounds_done"] == 2


def test_an_evaluation_that_fails_costs_no_round(tmp_path: Path) -> None:
    """The second of four evaluations, one call of the loss each."""
    left = 1

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal left
        left -= not output.requires_grad
        if left < 0:
            raise OSError("stale file handle")
        return torch.nn.functional.cross_entropy(output, targets)

    def simulate(out: Path, *, resume: bool = False) -> None:
        run = settings(rounds=4, workers=1)
        msfusion.simulate(net(), participants(), TEST, run, loss=loss, out=out, resume=resume)

    with pytest.raises(OSError, match="stale"):
        simulate(tmp_path / "broken")
    assert checkpoint.load(tmp_path / "broken")[1]["rounds_done"] == 2
    assert [one["evaluation"] is None for one in read(tmp_path / "broken").rounds] == [False, True]
    left = 99
    simulate(tmp_path / "broken", resume=True)
    simulate(tmp_path / "unbroken")
    assert same(*(checkpoint.load(tmp_path / name)[0] for name in ("broken", "unbroken")))


def test_a_save_that_fails_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = checkpoint.save

    def full(folder: Path, tensors: Any, facts: Any) -> None:
        if facts["rounds_done"]:
            raise OSError("no space left")
        plain(folder, tensors, facts)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="stale"), pytest.warns(UserWarning, match="lost.*no space left"):
        second_fails(2.5, tmp_path)
    assert checkpoint.load(tmp_path)[1]["rounds_done"] == 0


def test_a_merge_that_fails_in_the_middle_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = Momentum.carry_
    calls: list[str] = []

    def fails(momentum: Momentum, name: str, *rest: Any) -> None:
        calls.append(name)
        if calls.count(name) == 4 and name != calls[0]:  # the first parameter of the round is merged by then
            raise MemoryError("none left")
        carry(momentum, name, *rest)

    changes: dict[str, Any] = {"rounds": 5, "workers": 1, "server_momentum": 0.5, "checkpoint_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Momentum, "carry_", fails)
        with pytest.raises(MemoryError, match="none left"), pytest.warns(UserWarning, match="merge failed"):
            play(tmp_path / "broken", model=net(norm=False), **changes)
    assert checkpoint.load(tmp_path / "broken")[1]["rounds_done"] == 2
    for name in ("broken", "unbroken"):
        play(tmp_path / name, resume=name == "broken", model=net(norm=False), **changes)
    assert same(*(checkpoint.load(tmp_path / name)[0] for name in ("broken", "unbroken")))
