"""On a GPU: participants whose steps are recorded end, to the bit, where they end one by one."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from msfusion import Run, UserError
from msfusion.learn import recorded
from msfusion.learn.local import Train
from msfusion.learn.recorded import Slot, _unrepeated_draws
from msfusion.learn.ways import Unbatchable
from msfusion.models import build
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Result, Simulation

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [24, 24], "dropout": 0.3},
    "cnn": {"width": 4, "image": 8, "channels": 1, "hidden": 16},
    "resnet18": {"width": 8, "blocks": [1, 1]},
    "gpt": {"layers": 2, "heads": 4, "embed": 32, "block": 12, "dropout": 0.1},
    "vit": {"image": 8, "patch": 4, "layers": 2, "heads": 4, "embed": 32},
}


def examples(name: str, number: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(number)
    if name == "gpt":
        tokens = torch.randint(65, (number, 13), generator=draw)
        return TensorDataset(tokens[:, :-1], tokens[:, 1:])
    shape = {"mlp": (64,), "cnn": (1, 8, 8)}.get(name, (3, 8, 8))
    x = torch.randn(number, *shape, generator=draw)
    return TensorDataset(x, torch.randint(10, (number,), generator=draw))


def simulation(model: nn.Module, data: list[TensorDataset], **changes: Any) -> Simulation:
    run = Run(**{"width": 0.5, "rounds": 3, "device": "cuda", "train": Train(batch=8, steps=3), **changes})
    return Simulation(Problem(model, (data[0].tensors[0][:2],), data, data[0], name="model"), run)


def results(name: str, sizes: tuple[int, ...], **changes: Any) -> list[Result]:
    """The same run one by one and recorded."""
    both = []
    for batched in ("off", "on"):
        torch.manual_seed(0)
        model = build(name, None, MODELS[name])[0]
        data = [examples(name, size) for size in sizes]
        both.append(simulation(model, data, batched=batched, **changes).run())
    return both


def assert_equal(first: Result, second: Result) -> None:
    for (name, one), other in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other), f"{name}: {float((one - other).detach().abs().max())}"
    for one_round, other_round in zip(first.history, second.history, strict=True):
        assert one_round["train_loss"] == pytest.approx(other_round["train_loss"], rel=1e-6)
        assert one_round["windows"] == other_round["windows"]
        assert "one_by_one" not in other_round


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_recorded_steps_end_where_others_end(name: str, precision: Any) -> None:
    """Of five participants two have fewer examples than a batch: three shapes; models with dropout too."""
    train = Train(batch=8, steps=3, precision=precision)
    assert_equal(*results(name, (20, 5, 17, 40, 3), train=train))


OPTIONS: list[dict[str, Any]] = [
    {"train": Train(batch=8, steps=3, optimizer="adam", lr=0.003)},
    {"train": Train(batch=8, steps=3, optimizer="adamw", lr=0.003, weight_decay=0.1, clip=0.5)},
    {"train": Train(batch=8, steps=3, momentum=0.0, weight_decay=0.1, clip=0.2)},
    {"train": Train(batch=8, steps=3, lr_schedule="cosine")},
    {"method": "fjord", "width": (1.0, 0.5, 0.25)},
    {"method": "standalone"},
    {"method": "fedavg", "width": 1.0},
    {"mask_unseen": True, "sample": 0.6, "loss_rate": 0.2, "late_rate": 0.3, "rounds": 5},
    {"twins": 0.9, "server_momentum": 0.5},
]


@needs_gpu
@pytest.mark.parametrize("changes", OPTIONS)
def test_whatever_trains(changes: dict[str, Any]) -> None:
    assert_equal(*results("mlp", (20, 5, 17, 40, 3), **changes))


@needs_gpu
def test_nothing_is_recorded_again_when_windows_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three participants of one shape and two of another: a recording each, however many rounds."""
    made = []
    plain = Slot.record

    def watched(self: Slot, inputs: Tensor, targets: Tensor) -> None:
        made.append(len(inputs))
        plain(self, inputs, targets)

    monkeypatch.setattr(Slot, "record", watched)
    results("mlp", (20, 5, 17, 40, 5), rounds=6)
    assert sorted(made) == [5, 5, 8, 8, 8]


@needs_gpu
def test_more_participants_than_train_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfusion.learn.together._MOST", 3)
    assert_equal(*results("resnet18", (20,) * 7))


class Lengths(Dataset[tuple[Tensor, Tensor]]):
    """Texts of other lengths, one to a batch."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(65, (6 + index,), generator=torch.Generator().manual_seed(index))
        return tokens[:-1], tokens[1:]


@needs_gpu
def test_batches_of_other_shapes_than_the_recorded_train_as_they_are() -> None:
    both = []
    for batched in ("off", "on"):
        torch.manual_seed(0)
        model = build("gpt", None, MODELS["gpt"])[0]
        run = Run(width=0.5, rounds=2, device="cuda", batched=batched, train=Train(batch=1, steps=7))
        data = [Lengths() for _ in range(3)]
        problem = Problem(model, (torch.zeros(2, 9, dtype=torch.int64),), data, examples("gpt", 4))
        both.append(Simulation(problem, run).run())
    assert_equal(*both)


class Odd(nn.Module):
    """A model that no recording could repeat."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        if self.training and self.kind == "looks" and float(hidden.detach().sum()) > 1e9:
            hidden = hidden * 0
        if self.training and self.kind == "draws" and random.random() < 0.5:
            hidden = hidden * 2
        return self.head(hidden)  # type: ignore[no-any-return]


def odd(kind: str, **changes: Any) -> Simulation:
    torch.manual_seed(0)
    random.seed(0)
    return simulation(Odd(kind), [examples("mlp", size) for size in (20, 9, 12)], **changes)


@needs_gpu
@pytest.mark.parametrize(
    ("kind", "why"), [("looks", "a step cannot be recorded"), ("draws", "random numbers on the CPU")]
)
def test_what_cannot_be_recorded_trains_one_by_one(kind: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"batched=on\), but .*{why}"):
        odd(kind, batched="on").run()
    result = odd(kind, batched="auto").run()
    assert all(why in r["one_by_one"] for r in result.history)
    if kind == "looks":
        alone = odd(kind, batched="off").run()
        pairs = zip(result.model.parameters(), alone.model.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


@needs_gpu
def test_the_gpu_is_left_usable_after_a_refused_recording() -> None:
    odd("looks", batched="auto", rounds=1).run()
    assert_equal(*results("mlp", (20, 9, 12)))


DRAWS = {
    "torch": lambda: torch.rand(2),
    "python": lambda: random.random(),
    "numpy": lambda: np.random.rand(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_on_the_cpu_are_noticed(draw: str) -> None:
    with pytest.raises(Unbatchable, match="random numbers on the CPU"), _unrepeated_draws():
        DRAWS[draw]()


def test_other_work_on_the_cpu_is_not() -> None:
    with _unrepeated_draws():
        F.relu(torch.ones(3)).sum()
        torch.rand(3, generator=torch.Generator().manual_seed(0))


def test_steps_are_recorded_on_gpus_only() -> None:
    torch.manual_seed(0)
    run = simulation(build("mlp", None, {})[0], [examples("mlp", 9)], device="cpu", batched="on")
    assert not isinstance(run.setup.together._way, recorded.Slots)
