"""Peers end with the parameters of a simulation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from group import PRESET, Group, Nursery, simulated
from noisy import NOISY

from msfusion.records import read
from msfusion.report import write_report

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
        {"width": None, "share": [0.5, 0.25, 0.1], "twins": 0.0},
        {"mask_unseen": True, "logit_adjustment": 1.0, "server_momentum": 0.0},
        {"twins": 0.5, "width": 0.3, "method": "msfusion:residual-cut", "mask_unseen": True},
        {"train.keep_optimizer": True, "train.optimizer": "adamw", "train.lr": 0.01, "twins": 0.9},
        {"method": "random", "server_step": "cosine"},
        {"method": "msfusion:apart", "twins": 0.5, "width": 0.25, "rounds": 5},
        {"method": "fedavg", "width": 1.0, "train.optimizer": "adamw", "train.lr": 0.01},
        {"rounds": 5, "overlap": 0.3, "adapt.kind": "linear", "adapt.last": 0.1, "peers.replicas": 2},
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


FROZEN = """
from torch import nn

def model():
    hidden = nn.Linear(32, 32).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), hidden, nn.ReLU(), nn.Linear(32, 10))
"""


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_frozen_parameters_stay(tmp_path: Path, wire: str) -> None:
    (tmp_path / "model.py").write_text(FROZEN)
    preset = tmp_path / "preset.toml"
    preset.write_text(PRESET.replace('"cnn"', f'"{tmp_path}/model.py:model"').replace("options = {", "# {"))
    nursery = Nursery(preset)
    settings = {"rounds": 2, "width": 0.3, "peers.wire": wire}
    try:
        with Group(nursery, tmp_path / "peers", **settings).start_all() as group:
            group.finished()
            end = group.model(2)
        want = simulated(nursery, **settings)
        start = simulated(nursery, **{**settings, "rounds": 1})
    finally:
        nursery.close()
    if wire == "float32":
        assert all(torch.equal(end[name], value) for name, value in want.items())
    assert {name for name, v in start.items() if torch.equal(end[name], v)} == {"3.weight", "3.bias"}


def test_what_a_model_draws_beside_its_parameters_is_alike_and_exported_if_it_is_stored(
    tmp_path: Path,
) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    preset = tmp_path / "preset.toml"
    preset.write_text(PRESET.replace('"cnn"', f'"{tmp_path}/noisy.py:Noisy"').replace("options = {", "# {"))
    nursery = Nursery(preset)
    try:
        with Group(nursery, tmp_path / "peers", rounds=2).start_all() as group:
            group.finished()
            end = group.model(2)
        want = simulated(nursery, rounds=2)
    finally:
        nursery.close()
    assert all(torch.equal(end[name], value) for name, value in want.items())
    made: dict[str, Any] = {}
    exec(NOISY, made)
    made["Noisy"]().load_state_dict(end, strict=True)


def test_the_overlap_rate_follows_the_measured_shift(nursery: Nursery, tmp_path: Path) -> None:
    """Every peer measures what a simulation measures, changes the rate with it, and writes it down; and the
    records make a report."""
    settings = {"rounds": 9, "overlap": 0.3, "adapt.kind": "feedback", "adapt.target": 0.5}
    with Group(nursery, tmp_path / "peers", **settings).start_all() as group:
        group.finished()
        end = group.model(2)
    out = tmp_path / "simulation"
    want = simulated(nursery, out=out, **settings)
    assert all(torch.equal(end[name], value) for name, value in want.items())
    runs = [read(out), *(read(tmp_path / "peers" / str(n)) for n in range(4))]
    tracks = [[(line["shift"], line["overlap"]) for line in run.rounds] for run in runs]
    assert tracks == [tracks[0]] * 5
    assert len({rate for _, rate in tracks[0]}) > 2
    write_report([tmp_path / "peers"], tmp_path / "report.html")
    assert "Model shift over rounds" in (tmp_path / "report.html").read_text()
