"""Peers end with the parameters of a simulation."""

from pathlib import Path

import pytest
import torch
from group import Group, Nursery, simulated

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def test_peers_end_like_a_simulation(nursery: Nursery, tmp_path: Path) -> None:
    with Group(nursery, tmp_path, rounds=3).start_all() as group:
        group.finished()
        ends = {number: group.model(number) for number in group.pids}
        assert group.history(0) == [[0, 1, 2, 3]] * 3
    want = simulated(nursery, rounds=3)
    for end in ends.values():
        assert all(torch.equal(end[name], value) for name, value in want.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"contrast.weight": 1.0},
        {"sample": 0.5},
        {"mask_unseen": True},
        {"method": "random", "server_step": "cosine"},
        {"method": "fedavg", "width": 1.0, "train.optimizer": "adamw", "train.lr": 0.01},
        {"overlap": 0.3, "adapt.kind": "feedback", "adapt.target": 0.5, "rounds": 9},
        {"overlap": 0.3, "adapt.kind": "linear", "adapt.last": 0.1, "peers.replicas": 2},
    ],
    ids=str,
)
def test_with_options_as_well(nursery: Nursery, tmp_path: Path, settings: dict[str, object]) -> None:
    settings = {"rounds": 3, **settings}
    with Group(nursery, tmp_path, **settings).start_all() as group:
        group.finished()
        end = group.model(2)
    want = simulated(nursery, **settings)
    assert all(torch.equal(end[name], value) for name, value in want.items())
