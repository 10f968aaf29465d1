"""Buffers that training changes, which nobody hands over, are named when a run begins."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import CLASSES, FEATURES, TEST, net, participants, settings
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import msfusion
from msfusion import UserError
from msfusion.commands import export
from msfusion.learn.cost import changing_buffers
from msfusion.learn.objective import Objective
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation


class Counting(nn.Module):
    """Its own running mean, which it replaces, and a number of calls, to which it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shift", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            self.calls += 1
        out: Tensor = self.head(torch.relu(self.first(x - self.mean + self.shift)))
        return out


def spectral() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(FEATURES, 12)), nn.ReLU(), nn.Linear(12, CLASSES))


def instance() -> nn.Module:
    norm = nn.InstanceNorm1d(4, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 4, 3, padding=1), norm, nn.Flatten())


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (Counting, ["mean", "calls"]),
        (spectral, ["0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v"]),
        (instance, ["2.running_mean", "2.running_var"]),
        (lambda: net(norm=True), []),
        (lambda: nn.Sequential(nn.Linear(FEATURES, 4), nn.LayerNorm(4)), []),
    ],
    ids=["own", "spectral norm", "instance norm", "batch norm", "none"],
)
def test_buffers_that_training_changes_are_found(made: Callable[[], nn.Module], expected: list[str]) -> None:
    model = made()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert changing_buffers(model, (torch.zeros(2, FEATURES),)) == expected
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_run_begins_with_a_warning_where_there_are_some() -> None:
    with pytest.warns(UserWarning, match="training changes mean, calls, and participants hand over"):
        msfusion.simulate(Counting(), participants(), TEST, settings(rounds=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        msfusion.simulate(net(norm=True), participants(), TEST, settings(rounds=1))


def test_a_participant_does_not_start_from_buffers_that_another_has_replaced() -> None:
    data = participants()
    problem = Problem(Counting(), (torch.zeros(2, FEATURES),), data, TEST, Objective())
    with pytest.warns(UserWarning, match="training changes mean"):
        run = Simulation(problem, settings())
    one, two = run.participants[:2]
    found = []
    for before in ([], [one]):
        for participant in (*before, two):
            windows = run.learner.windows(0, participant)
            handed, loss, _ = run.learner.train(0, participant, windows, run.store.pull(1, windows))
        found.append((loss, handed.values["head.bias"]))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_participants_do_not_train_at_once_where_buffers_change() -> None:
    with (
        pytest.warns(UserWarning, match="training changes mean"),
        pytest.raises(UserError, match=r"batched=on\), but training changes buffers of the model"),
    ):
        msfusion.simulate(Counting(), participants(), TEST, settings(batched="on"))


def test_what_is_saved_can_be_loaded_into_the_model(tmp_path: Path) -> None:
    """Buffers that are not persistent are made by the model itself."""
    model = net(norm=True)
    model.register_buffer("table", torch.ones(3), persistent=False)
    result = msfusion.simulate(model, participants(), TEST, settings(rounds=1), out=tmp_path / "run")
    result.save(tmp_path / "saved.safetensors")
    export.run(tmp_path / "run", tmp_path / "exported.safetensors", shard=None, json=True)
    for name in ("saved", "exported"):
        other = net(seed=1, norm=True)
        other.register_buffer("table", torch.ones(3), persistent=False)
        load_model(other, tmp_path / f"{name}.safetensors")
        assert all(torch.equal(v, model.state_dict()[key]) for key, v in other.state_dict().items())


class Renaming(nn.Module):
    """Leaves out of its state dict what its user does not store, and renames the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES)
        self.register_buffer("scale", torch.ones(FEATURES))
        self.first.register_buffer("table", torch.ones(FEATURES), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.first(x * self.scale * self.first.table)))
        return out

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"head": self.head.state_dict()}


def test_a_state_dict_of_the_models_own_leaves_nothing_out(tmp_path: Path) -> None:
    model = Renaming()
    result = msfusion.simulate(model, participants(), TEST, settings(rounds=1), out=tmp_path / "run")
    result.save(tmp_path / "saved.safetensors")
    export.run(tmp_path / "run", tmp_path / "exported.safetensors", shard=None, json=True)
    for name in ("saved", "exported"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == {"first.weight", "first.bias", "head.weight", "head.bias", "scale"}
        assert torch.equal(found["head.bias"], model.head.bias)


@pytest.mark.parametrize("norm", [True, False])
def test_expanded_buffers_resume_and_are_saved(norm: bool, tmp_path: Path) -> None:
    model = net(norm=norm)
    model.register_buffer("scale", torch.ones(1, 1).expand(1, FEATURES))
    for rounds in (1, 2):
        run = settings(rounds=rounds)
        result = msfusion.simulate(model, participants(), TEST, run, out=tmp_path, resume=rounds == 2)
    result.save(tmp_path / "saved.safetensors")
    assert load_file(tmp_path / "saved.safetensors")["scale"].shape == (1, FEATURES)
