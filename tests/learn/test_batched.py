"""Participants that train at once end where they end one by one."""

import copy
from pathlib import Path
from typing import Any

import at_once
import pytest
import torch
from at_once import examples, simulation
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from msfusion import Run, UserError
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective
from msfusion.learn.stacks import Stacks
from msfusion.learn.together import by_shape
from msfusion.models import build
from msfusion.records import read
from msfusion.runtimes import checkpoint
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Result, Simulation

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [24, 24]},
    "cnn": {"width": 4, "image": 8, "channels": 1, "hidden": 16},
    "resnet18": {"width": 8, "blocks": [1, 1]},
    "gpt": {"layers": 2, "heads": 4, "embed": 32, "block": 12},
    "vit": {"image": 8, "patch": 4, "layers": 2, "heads": 4, "embed": 32},
}
TOLERANCE = 2e-4  # of the largest value of a tensor, after the rounds below


def both(name: str, sizes: tuple[int, ...], **changes: Any) -> list[Result]:
    return at_once.both(name, MODELS[name], sizes, **changes)


def assert_close(first: Result, second: Result) -> None:
    for (name, one), other in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        distance = (one - other).abs().max() / one.abs().max().clamp_min(1e-3)
        assert distance < TOLERANCE, f"{name}: {float(distance.detach())}"
    for one_round, other_round in zip(first.history, second.history, strict=True):
        assert one_round["train_loss"] == pytest.approx(other_round["train_loss"], rel=1e-4)
        assert one_round["participants"] == other_round["participants"]
        assert one_round["windows"] == other_round["windows"]
        assert "one_by_one" not in other_round


@pytest.mark.parametrize("name", MODELS)
def test_at_once_ends_where_one_by_one_ends(name: str) -> None:
    """Of five participants two have fewer examples than a batch: three shapes."""
    assert_close(*both(name, (20, 5, 17, 40, 3)))


OPTIONS: list[dict[str, Any]] = [
    {"train": Train(batch=8, steps=3, optimizer="adam", lr=0.003)},
    {"train": Train(batch=8, steps=3, optimizer="adamw", lr=0.003, weight_decay=0.1)},
    {"train": Train(batch=8, steps=3, optimizer="adamw", lr=0.003, lr_fan_in=5)},
    {"train": Train(batch=8, steps=3, momentum=0.0, weight_decay=0.1, clip=0.2)},
    {"method": "fjord", "width": 1.0},
    {"method": "random"},
    {"method": "standalone"},
    {"method": "fedavg"},
    {"logit_adjustment": 1.0},
    {"mask_unseen": True, "sample": 0.8, "loss_rate": 0.2, "late_rate": 0.3, "rounds": 4},
]


@pytest.mark.parametrize("changes", OPTIONS)
def test_whatever_trains(changes: dict[str, Any]) -> None:
    assert_close(*both("mlp", (20, 5, 17, 40, 3), **changes))


def test_they_do_train_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of the five have batches of the same size; the others train alone."""
    groups = []
    plain = Stacks.train

    def watched(self: Stacks, group: Any) -> Any:
        groups.append(len(group.data))
        return plain(self, group)

    monkeypatch.setattr(Stacks, "train", watched)
    both("mlp", (20, 5, 17, 40, 3), rounds=1)
    assert groups == [3]


def test_the_same_seed_gives_the_same_bits_with_dropout() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build("mlp", None, {"dropout": 0.5})[0]
        data = [examples("mlp", size) for size in (20, 9, 12)]
        states.append(simulation(model, data, batched="on").run().model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_dropout_differs_between_participants() -> None:
    """Equal data, equal windows, no noise but dropout: standalone participants end apart."""
    torch.manual_seed(0)
    model = build("mlp", None, {"dropout": 0.5})[0]
    data = [examples("mlp", 8)] * 3  # batches of all examples
    run = simulation(model, data, batched="on", method="standalone", rounds=1)
    run.run()
    own = {name: value for name, value in run.store.state().items() if name.startswith("own/")}
    weights = [own[f"own/{number}/hidden.0.weight"] for number in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    def run(out: Path, rounds: int, *, resume: bool = False) -> None:
        torch.manual_seed(0)
        model = build("mlp", None, {"dropout": 0.5})[0]
        data = [examples("mlp", size) for size in (20, 9, 12, 3)]
        simulation(model, data, out, batched="on", rounds=rounds).run(resume=resume)

    run(tmp_path / "broken", 2)
    run(tmp_path / "broken", 4, resume=True)
    run(tmp_path / "unbroken", 4)
    first, second = (checkpoint.load(tmp_path / name)[0] for name in ("broken", "unbroken"))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Unused(nn.Module):
    """A parameter that the loss does not depend on: weight decay must leave it alone, as it does when one
    trains alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.unused = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        self.unused(hidden)
        return self.head(hidden)  # type: ignore[no-any-return]


def test_parameters_without_a_gradient_are_left_alone() -> None:
    torch.manual_seed(0)
    model = Unused()
    before = copy.deepcopy(model)
    data = [examples("mlp", size) for size in (20, 9)]
    simulation(model, data, batched="on", method="fedavg", width=None, train=Train(weight_decay=0.5)).run()
    assert torch.equal(model.unused.weight, before.unused.weight)
    assert not torch.equal(model.first.weight, before.first.weight)


class Branching(nn.Module):
    """Looks at values in training, which no batched form can."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        if not torch.compiler.is_compiling() and float(hidden.detach().sum()) > 1e9:
            hidden = hidden * 0
        return self.head(hidden)  # type: ignore[no-any-return]


def branching(**changes: Any) -> Simulation:
    torch.manual_seed(0)
    return simulation(Branching(), [examples("mlp", size) for size in (20, 9, 12)], **changes)


def test_on_says_in_a_sentence_what_a_model_cannot() -> None:
    with pytest.raises(UserError, match=r"train at once \(batched=on\), but .*; set batched to auto or off"):
        branching(batched="on").run()


def test_auto_falls_back_and_the_records_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where auto is on."""
    run = branching(out=tmp_path)
    run.setup.together._off = False
    result = run.run()
    assert all("vmap" in r["one_by_one"] for r in read(tmp_path).rounds)
    alone = branching(batched="off").run()
    assert all(
        torch.equal(p, q) for p, q in zip(result.model.parameters(), alone.model.parameters(), strict=True)
    )


def test_auto_is_off_on_a_cpu() -> None:
    run = branching()
    run.run()
    assert not run.setup.together.tries
    assert run.setup.together.why_not is None


def test_the_contrastive_loss_is_refused() -> None:
    with pytest.raises(UserError, match="contrastive loss has no batched form; set batched to auto or off"):
        branching(batched="on", contrast=Contrast(1.0))


def test_errors_are_those_of_training_alone() -> None:
    """A label that the model has no output for."""
    data = [examples("mlp", size) for size in (20, 9)]
    data[0].tensors[1][:] = 12
    model = build("mlp", None, {})[0]
    with pytest.raises(UserError, match="expected labels from 0 to 9"):
        simulation(model, data, batched="on").run()


def test_a_loss_of_the_users_own() -> None:
    results = []
    for batched in ("off", "on"):
        torch.manual_seed(0)
        model = build("mlp", None, {})[0]
        x = examples("mlp", 20).tensors[0]
        data = [TensorDataset(x[i::2], x[i::2, :10]) for i in range(2)]
        problem = Problem(model, (x[:2],), data, data[0], Objective(F.mse_loss))
        run = Run(width=0.5, rounds=2, train=Train(batch=8, steps=3), batched=batched)
        results.append(Simulation(problem, run).run())
    assert_close(*results)


def test_bf16_at_once_and_one_by_one() -> None:
    """Autocast rounds alike in both; the values stay in single precision."""
    train = Train(batch=8, steps=3, precision="bf16")
    one, other = both("mlp", (20, 17), train=train)
    plain = both("mlp", (20, 17))[0]
    pairs = list(zip(one.model.parameters(), other.model.parameters(), plain.model.parameters(), strict=True))
    assert all(p.dtype == torch.float32 for p, _, _ in pairs)
    assert max(float((p - q).detach().abs().max()) for p, q, _ in pairs) < 5e-3
    assert not all(torch.equal(p, r) for p, _, r in pairs)


def test_groups_are_of_one_shape_and_not_too_large() -> None:
    shapes = ["a", "b", "a", "a", "c", "b", "a"]
    groups = list(by_shape(list(zip(shapes, range(7), strict=True)), most=3))
    assert groups == [[0, 2, 3], [6], [1, 5], [4]]
