"""Values that are rounded on their way, and nowhere else."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from group import Group, Nursery, Replay
from torch import Tensor

from msfusion.core.axes import Selection
from msfusion.core.merge import Contribution, Shift
from msfusion.learn.store import Store
from msfusion.peers.wire import Wire
from msfusion.runtimes.simulation import Simulation

BRAIN = Wire("bfloat16")


def test_values_are_rounded_to_eight_bits_and_changes_as_such() -> None:
    step = 2.0**-9
    kept = torch.tensor([1 + step, 1 + 3 * step, -3.0])
    (sent,) = BRAIN.values([kept])
    assert sent.tolist() == [1.0, 1 + 4 * step, -3.0]  # to nearest, ties to even
    trained = sent.float() + torch.tensor([2.0**-14, 0.0, 1.0])
    handed = BRAIN.handed(trained, sent.float())
    assert handed.dtype == torch.bfloat16
    assert torch.equal(BRAIN.merged(handed, kept), kept + torch.tensor([2.0**-14, 0.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_travel_as_they_are(dtype: torch.dtype) -> None:
    value = torch.tensor([3, 5]).to(dtype)
    assert BRAIN.values([value])[0] is value
    assert BRAIN.room([value])[0] is value
    assert BRAIN.merged(BRAIN.handed(value, value), value * 0) is value


def test_by_default_nothing_is_rounded() -> None:
    plain, value = Wire("float32"), torch.randn(3)
    assert plain.values([value])[0] is value
    assert plain.room([value])[0] is value
    assert plain.merged(plain.handed(value, value * 0), value * 0) is value


class Rounded:
    """A store whose values are rounded as docs/peers.md says, written without the code under test."""

    def __init__(self, simulation: Simulation) -> None:
        self._store: Store = simulation.store
        self._names = {name for name, _ in simulation.model.named_parameters()}
        self._pulled: dict[int, dict[str, Tensor]] = {}

    def pull(
        self, participant: int, selection: Selection, into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        values = self._store.pull(participant, selection)
        pulled = {n: v.bfloat16().float() if n in self._names else v for n, v in values.items()}
        self._pulled[participant] = {name: value.clone() for name, value in pulled.items()}
        if into is None:
            return pulled
        return {name: into[name].copy_(value) for name, value in pulled.items()}

    def push(self, contribution: Contribution) -> None:
        number = contribution.participant
        own, pulled = self._store.pull(number, contribution.selection), self._pulled[number]
        values = {n: own[n] + (v - pulled[n]).bfloat16().float() for n, v in contribution.values.items()}
        self._store.push(replace(contribution, values=values))

    def commit(self, step: float) -> Shift | None:
        return self._store.commit(step)

    def discard(self) -> None:
        self._store.discard()

    def state(self) -> Mapping[str, Tensor]:
        return self._store.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._store.restore(state)


@pytest.mark.slow
@pytest.mark.processes
def test_half_the_bytes_and_only_the_stated_rounding(
    nursery: Nursery, tmp_path: Path, replay: Replay
) -> None:
    received, ends = {}, {}
    for wire in ("float32", "bfloat16"):
        with Group(nursery, tmp_path / wire, rounds=3, **{"peers.wire": wire}).start_all() as group:
            group.finished()
            assert group.history(0) == [[0, 1, 2, 3]] * 3
            received[wire] = [group.received(n) for n in range(4)]
            ends[wire] = [group.model(n) for n in range(4)]
    for plain, brain in zip(received["float32"], received["bfloat16"], strict=True):
        assert plain["values"] == 2 * brain["values"] > 0
        assert plain["given"] == 2 * brain["given"] > 0
        assert plain["file"] > 0  # copies for replicas travel as they are
    want = replay.model([[0, 1, 2, 3]] * 3, Rounded)
    for end in ends["bfloat16"]:
        assert all(torch.equal(end[name], value) for name, value in want.items())
    exact = replay.model([[0, 1, 2, 3]] * 3)
    assert all(torch.equal(ends["float32"][0][name], value) for name, value in exact.items())
    assert any(not torch.equal(exact[name], value) for name, value in want.items())
