"""Worker processes: the bits, the errors and the end of a run are those of one process."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset

from msfusion import Run, UserError
from msfusion.core.merge import Contribution
from msfusion.errors import Diverged
from msfusion.learn.carried import Carried
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective
from msfusion.models import build
from msfusion.records import read
from msfusion.runtimes import checkpoint, cores, workers
from msfusion.runtimes.run import Problem
from msfusion.runtimes.shared import Shared, size_of
from msfusion.runtimes.simulation import Result, Simulation

# In a call of their own: a process that has trained on another device than the CPU cannot train in a fork.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(torch.cuda.is_available(), reason="no fork can train once autograd has seen a GPU"),
]

SIZES = (20, 5, 17, 40, 9)


def examples(number: int, seed: int = 0) -> TensorDataset:
    draw = torch.Generator().manual_seed(1000 * seed + number)
    x = torch.randn(number, 64, generator=draw)
    return TensorDataset(x, torch.randint(10, (number,), generator=draw))


def simulation(
    number: int | str, out: Path | None = None, loss: Callable[..., Tensor] | None = None, **changes: Any
) -> Simulation:
    torch.manual_seed(0)
    model = changes.pop("model", None) or build("mlp", None, {"hidden": [24, 24], "dropout": 0.3})[0]
    data: list[Dataset[Any]] = [examples(size, i) for i, size in enumerate(SIZES)]
    data = changes.pop("data", data)
    settings = {"width": 0.5, "rounds": 3, "train": Train(batch=8, steps=3), "workers": number, **changes}
    problem = Problem(model, (torch.randn(2, 64),), data, data[0], Objective(loss), name="model")
    return Simulation(problem, Run(**settings), out=out)


def same(first: Result, second: Result) -> None:
    for one, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert first.evaluation == second.evaluation
    for round, other_round in zip(first.history, second.history, strict=True):
        assert {**round, "seconds": 0} == {**other_round, "seconds": 0}


CASES: list[dict[str, Any]] = [
    {},
    {"contrast": Contrast(1.0)},
    {"contrast": Contrast(1.0), "sample": 0.6, "late_rate": 0.4, "loss_rate": 0.2},
    {"logit_adjustment": 0.5, "contrast": Contrast(weight=1.0)},
    {"train": Train(batch=8, steps=3, optimizer="adam", keep_optimizer=True), "twins": 0.9, "sample": 0.6},
    {"train": Train(batch=8, steps=3, keep_optimizer=True), "contrast": Contrast(1.0), "width": (0.5, 0.25)},
    {"mask_unseen": True, "width": (1.0, 0.5, 0.25)},
    {"method": "standalone"},
    {"method": "msfusion:apart", "twins": 0.5, "rounds": 5, "sample": 0.6},
    {"method": "random", "train": Train(batch=8, steps=3, optimizer="adamw", clip=1.0)},
    {"method": "fjord", "width": (1.0, 0.5)},
    {"method": "fedavg", "width": None},
]


@pytest.mark.parametrize("changes", CASES)
def test_workers_change_no_bit(changes: dict[str, Any]) -> None:
    """Dropout, sampling, late and lost contributions, previous models, sub-models of several widths."""
    alone = simulation(1, **changes).run()
    for number in (2, 3):
        same(alone, simulation(number, **changes).run())


def test_they_train_elsewhere_and_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process merges, in the order of the participants, and trains nobody."""
    run = simulation(2, rounds=1)
    merged = []
    plain = run.store.push

    def push(contribution: Contribution) -> None:
        merged.append(contribution.participant)
        plain(contribution)

    monkeypatch.setattr(run.store, "push", push)
    monkeypatch.setattr("msfusion.learn.learner.train", lambda *_: float(os.getpid()))
    result = run.run()
    assert merged == list(range(len(SIZES)))
    loss = result.history[0]["train_loss"]
    assert loss is not None
    assert loss != os.getpid()


def test_a_run_with_workers_resumes_without_and_ends_alike(tmp_path: Path) -> None:
    simulation(2, tmp_path / "broken", rounds=2).run()
    simulation(1, tmp_path / "broken", rounds=4).run(resume=True)
    simulation(3, tmp_path / "unbroken", rounds=4).run()
    first, second = (checkpoint.load(tmp_path / name)[0] for name in ("broken", "unbroken"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "3 workers" in read(tmp_path / "unbroken").header["hardware"]


# --- errors


def error_of(number: int, **changes: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        simulation(number, **changes).run()
    return caught.value


def diverging() -> list[Dataset[Any]]:
    data = [examples(size, i) for i, size in enumerate(SIZES)]
    for i in (2, 3):
        data[i].tensors[0].fill_(float("nan"))
    return list(data)


def test_a_loss_that_is_not_finite_is_said_as_without_workers() -> None:
    """Of two participants that diverge the first is named, whoever is faster."""
    alone, elsewhere = (error_of(number, data=diverging(), rounds=1) for number in (1, 3))
    assert isinstance(elsewhere, Diverged)
    assert "participant 2" in str(elsewhere)
    assert str(elsewhere) == str(alone)


def test_a_failed_round_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    for number in (1, 2):
        with pytest.raises(Diverged):
            simulation(number, tmp_path / str(number), data=diverging()).run()
    first, second = (checkpoint.load(tmp_path / str(number))[0] for number in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_bug_keeps_its_traceback() -> None:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("a bug of the user's")

    with pytest.raises(RuntimeError, match=r"in a worker process:(.|\n)*in loss(.|\n)*KeyError: .a bug"):
        simulation(2, loss=loss).run()


def test_a_worker_that_dies_ends_the_run_in_a_sentence() -> None:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return output.sum()

    error = error_of(2, loss=loss)
    assert "it ended with SIGKILL, as happens where memory runs out; set workers to 1" in str(error)


class Slow(nn.Module):
    """Says that it has begun, and takes long."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        draft = self.path.with_name(str(os.getpid()))
        draft.write_text(draft.name)
        draft.replace(self.path)  # whole, also where this process ends meanwhile
        time.sleep(0.2)
        return nn.functional.cross_entropy(output, targets)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_ends_with_its_workers(tmp_path: Path) -> None:
    """Ctrl-C behind the first participant: the others are not waited for, and no process is left."""
    run = simulation(
        2, tmp_path / "run", loss=Slow(tmp_path / "pid"), rounds=1, train=Train(batch=8, steps=1)
    )
    run.journal.round = None  # type: ignore[method-assign, assignment]
    plain = run.store.push

    def push(contribution: Contribution) -> None:
        plain(contribution)
        signal.raise_signal(signal.SIGINT)

    run.store.push = push  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert not alive(int((tmp_path / "pid").read_text()))
    done, _ = run.journal.load([])
    assert done == 0


# --- how many


def chosen(number: int | str = "auto", **changes: Any) -> cores.Crew:
    run = simulation(number, **changes)
    with cores.crew(run.config, run.setup, run.participants, run.learner) as crew:
        return crew


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cores", lambda: 4)
    monkeypatch.setattr(cores, "_MOST", 64)


@pytest.mark.usefixtures("four")
def test_one_per_core_that_a_round_can_use() -> None:
    assert str(chosen()) == "4 workers"
    assert str(chosen(sample=0.4)) == "2 workers"
    assert str(chosen(sample=0.2)) == "1 worker"
    assert str(chosen(3)) == "3 workers"
    assert str(chosen(data=[Subset(examples(9), [1, 2])] * 2)) == "2 workers"


class Counter(Dataset[Any]):
    """Keeps a state: what it gives out depends on what it has given out before."""

    def __init__(self) -> None:
        self.given = 0

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.given += 1
        return torch.full((64,), float(self.given)), 0


AGAINST: list[tuple[dict[str, Any], str]] = [
    ({"batched": "on"}, "train at once"),
    ({"threads": 2}, "2 threads"),
]


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(("changes", "why"), AGAINST)
def test_what_speaks_against_workers_is_said(changes: dict[str, Any], why: str) -> None:
    assert str(chosen(**changes)).startswith("1 worker (")
    assert why in str(chosen(**changes))
    with pytest.raises(UserError, match=f"expected a run that 2 workers can train, but .*{why}"):
        chosen(2, **changes)


@pytest.mark.usefixtures("four")
def test_a_dataset_of_the_users_own_stays_in_one_process_unless_asked() -> None:
    data = [Counter(), Counter()]
    assert "a dataset of type Counter may keep a state" in str(chosen(data=data))
    assert str(chosen(2, data=data)) == "2 workers"


class Anneal:
    """A loss that is another one at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(output, targets) / self.calls


@pytest.mark.usefixtures("four")
def test_a_loss_that_may_remember_stays_in_one_process_unless_asked() -> None:
    for loss in (Anneal(), Anneal().__call__):
        assert "a loss of type" in str(chosen(loss=loss))
        assert str(chosen(2, loss=loss)) == "2 workers"
    for loss in (nn.CrossEntropyLoss(), F.cross_entropy, lambda output, y: F.cross_entropy(output, y)):
        assert str(chosen(loss=loss)) == "4 workers"


class Counts(nn.Module):
    """A model that is another one at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.calls, self.width = nn.Linear(64, 16), 0, 0
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.width = x.shape[-1]
        out: Tensor = self.head(torch.relu(self.inside(x)) / self.calls)
        return out


@pytest.mark.usefixtures("four")
def test_a_model_that_counts_stays_in_one_process() -> None:
    assert "1 worker (the model's forward counts in calls, which" in str(chosen(model=Counts()))
    with pytest.raises(UserError, match=r"batched=on\), but the model's forward counts in calls"):
        chosen(model=Counts(), batched="on")
    with pytest.raises(UserError, match="2 workers can train, but the model's forward counts in calls"):
        chosen(2, model=Counts())


@pytest.mark.usefixtures("four")
def test_not_more_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else 4096)
    assert "4 participants at once take" in str(chosen())


@pytest.mark.usefixtures("four")
def test_where_a_forked_process_cannot_train_this_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU, after a backward pass in this process."""
    monkeypatch.setattr(workers, "_problem", lambda: "Unable to handle autograd's threading")
    assert "a forked process cannot train: Unable to handle" in str(chosen())
    with pytest.raises(UserError, match="but a forked process cannot train"):
        chosen(2)
    run = simulation("auto")
    same(run.run(), simulation(1).run())


# --- memory that is shared


def test_shared_tensors_lie_apart_and_are_seen_by_a_child() -> None:
    like = {"a": torch.empty(3, 5), "b": torch.empty((), dtype=torch.int64), "c": torch.empty(7, 0)}
    shared = Shared(size_of(like))
    ours = shared.tensors(like)
    for value, tensor in enumerate(ours.values()):
        tensor.fill_(value)
    child = os.fork()
    if not child:
        shared.tensors(like)["a"].add_(41)
        os._exit(0)
    os.waitpid(child, 0)
    assert ours["a"].eq(41).all()
    assert int(ours["b"]) == 1
    assert all(t.dtype == like[n].dtype and t.shape == like[n].shape for n, t in ours.items())
    assert all(t.data_ptr() % 64 == 0 for t in ours.values() if t.numel())


def test_memory_is_that_of_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sub-models per worker, whatever the number of participants, and room for what two remember."""
    made: list[int] = []
    plain = Shared.__init__

    def counting(self: Shared, size: int) -> None:
        made.append(size)
        plain(self, size)

    monkeypatch.setattr(Shared, "__init__", counting)
    data = [examples(9, i) for i in range(12)]
    kept = Train(optimizer="adam", lr=0.01, keep_optimizer=True)
    for changes, memories in (({}, 0), ({"contrast": Contrast(1.0)}, 1), ({"train": kept}, 2)):
        made.clear()
        run = simulation(2, data=data, **changes)
        run.run()
        shapes = run.setup.submodels.shapes(run.participants[0].widths)
        parameters = size_of({n: t for n, t in shapes.items() if isinstance(t, nn.Parameter)})
        assert made[::2] == [size_of(shapes)] * 4
        steps = 64 * len(list(run.model.parameters())) * (memories == 2)  # a number in a line of its own
        assert made[1::2] == [memories * parameters + steps] * 4


def test_carried_values_are_no_slots() -> None:
    """What a round leaves for the next must outlive the slots it came through."""
    run = simulation(2, contrast=Contrast(1.0))
    run.run()
    kept = run.carried.previous
    before = {n: v.clone() for n, v in kept[0].values.items()}
    again = Carried(kept)
    assert sorted(again.previous) == list(range(len(SIZES)))
    assert len({v.data_ptr() for one in kept.values() for v in one.values.values()}) == len(SIZES) * len(
        before
    )
