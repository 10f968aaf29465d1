"""On a GPU: participants whose steps are recorded end, to the bit, where they end one by one."""

import random
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import at_once
import numpy as np
import pytest
import torch
from at_once import examples
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from msfusion import Run, UserError
from msfusion.learn import recorded
from msfusion.learn.local import Train, make_optimizer, update
from msfusion.learn.recorded import Slot, Slots, _unrepeated_draws
from msfusion.learn.together import Together
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


def simulation(model: nn.Module, data: list[TensorDataset], **changes: Any) -> Simulation:
    return at_once.simulation(model, data, **{"rounds": 3, "device": "cuda", **changes})


def results(name: str, sizes: tuple[int, ...], **changes: Any) -> list[Result]:
    """The same run one by one and recorded."""
    return at_once.both(name, MODELS[name], sizes, **{"rounds": 3, "device": "cuda", **changes})


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
    {"train": Train(batch=8, steps=3, optimizer="adamw", lr=0.003, lr_fan_in=5, lr_schedule="cosine")},
    {"train": Train(batch=8, steps=3, momentum=0.0, weight_decay=0.1, clip=0.2)},
    {"train": Train(batch=8, steps=3, lr_schedule="cosine")},
    {"method": "fjord", "width": (1.0, 0.5, 0.25)},
    {"method": "standalone"},
    {"method": "fedavg", "width": 1.0},
    {"logit_adjustment": 1.0},
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


class Drawing(Dataset[tuple[Tensor, Tensor]]):
    """Examples that differ whenever they are read, as with augmentation that draws from torch's generator."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.randn(64) + index % 10, torch.tensor(index % 10)


class Eager:
    """A slot that trains when it is told to, on the CPU."""

    left = 0

    def __init__(
        self, module: nn.Module, factors: Any, rates: dict[str, float], objective: Any, config: Train
    ) -> None:
        self.tensors = {name: p.detach() for name, p in module.named_parameters()}
        self.values = self.tensors
        self._factors = factors
        self._args = module, make_optimizer(module, config, config.lr, rates), objective, config
        self._sizes: set[int] = set()
        self._loss = 0.0

    def knows(self, size: int) -> bool:
        return size in self._sizes

    def record(self, inputs: Tensor, targets: Tensor) -> None:
        self._sizes.add(len(inputs))

    def start(self, drawn: Any, lr: float, seed: int) -> None:
        self._args[1].start_again(lr)
        self._loss = 0.0
        for name, factor in self._factors.items():
            self.tensors[name] *= factor
        for inputs, targets in drawn:
            assert self.knows(len(inputs))
            self._loss += float(update(*self._args, inputs, targets))

    def finish(self, fill: Callable[[Mapping[str, Tensor]], None]) -> float:
        for name, factor in self._factors.items():
            self.tensors[name] /= factor
        return self._loss

    def leave(self) -> None:
        Eager.left += 1


def with_slots(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Simulation:
    """A run on the CPU whose participants have slots as on a GPU."""
    monkeypatch.setattr(recorded, "Slot", Eager)
    monkeypatch.setattr(Eager, "left", 0)
    made = drawing(**changes)
    made.setup.together._off, made.setup.together._way = False, Slots(made.setup.submodels)
    return made


def drawing(**changes: Any) -> Simulation:
    torch.manual_seed(0)
    model = build("mlp", None, {"hidden": [24, 24]})[0]
    data = [Drawing(size) for size in (20, 5, 17, 40, 3)]
    run = Run(
        **{"width": (0.5, 0.25), "rounds": 3, "batched": "off", "train": Train(batch=8, steps=3), **changes}
    )
    return Simulation(Problem(model, (torch.randn(2, 64),), data, examples("mlp", 9)), run)


def test_slots_keep_the_order_the_draws_of_the_data_and_the_optimizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two widths and three sizes of a batch, in one group."""
    adamw = Train(batch=8, steps=3, optimizer="adamw", lr_schedule="cosine", lr_fan_in=8)
    for train in (Train(batch=8, steps=3), adamw):
        alone = drawing(train=train).run()
        before = torch.get_rng_state()
        slots = with_slots(monkeypatch, train=train)
        torch.set_rng_state(before)
        assert_equal(alone, slots.run())
        assert torch.equal(torch.get_rng_state(), before)
        assert Eager.left == 3 * 5


def test_a_group_that_is_not_read_to_its_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_slots(monkeypatch)
    (group,) = made.learner.groups(0, made.participants)
    trained = made.learner.train_together(0, group, made.store)
    assert trained is not None
    next(trained)
    assert Eager.left == 0
    trained.close()
    assert Eager.left == 5


def test_data_that_cannot_be_read_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_slots(monkeypatch)
    (group,) = made.learner.groups(0, made.participants)
    next(made.learner.train_together(0, group, made.store) or iter(()))
    Eager.left = 0

    def broken(self: Drawing, index: int) -> Any:
        if self.number == 17:
            raise OSError("gone")
        return torch.randn(64), torch.tensor(0)

    monkeypatch.setattr(Drawing, "__getitem__", broken)
    with pytest.raises(OSError, match="gone"):
        made.learner.train_together(1, group, made.store)
    assert Eager.left == 3


class Forgetful:
    least, mixes, forgotten = 1, True, 0

    def forget(self) -> None:
        self.forgotten += 1


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, memory: int, batched: Any = "auto") -> Together:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(total_memory=memory))
    together = Together(SimpleNamespace(device=torch.device("cuda"), counters=list), batched)  # type: ignore[arg-type]
    together._way = Forgetful()  # type: ignore[assignment]
    return together


def test_half_of_the_memory_holds_one_of_every_shape_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes: three places for a shape of 30; one for it and one of 60, also when that is away."""
    together = on_a_gpu(monkeypatch, 200)
    assert together.groups([("a", i) for i in range(4)], {"a": 30}) == [[0, 1, 2], [3]]
    forgotten = together._way.forgotten
    assert together.groups([("b", 0), ("a", 1)], {"a": 30, "b": 60}) == [[0], [1]]
    assert together._way.forgotten == forgotten + 1
    assert together.groups([("a", 0), ("a", 1)], {"a": 30}) == [[0], [1]]
    assert together.takes(1)


def test_what_does_not_fit_trains_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    together = on_a_gpu(monkeypatch, 200)
    assert together.groups([("a", 0), ("b", 1)], {"a": 60, "b": 60}) == [[0], [1]]
    assert not together.takes(1)
    assert together.why_not == "a sub-model of every shape takes more than half of the GPU's memory"
    with pytest.raises(UserError, match=r"batched=on\), but a sub-model"):
        on_a_gpu(monkeypatch, 200, "on").groups([("a", 0)], {"a": 101})


def test_steps_are_recorded_on_gpus_only() -> None:
    torch.manual_seed(0)
    run = simulation(build("mlp", None, {})[0], [examples("mlp", 9)], device="cpu", batched="on")
    assert not isinstance(run.setup.together._way, Slots)
