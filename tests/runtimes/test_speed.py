"""What a round does beside arithmetic: operations and bytes are counted, not seconds."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from msfusion import Run
from msfusion.data.examples import LabelledImages
from msfusion.learn.carried import Carried
from msfusion.learn.local import Train, make_optimizer, train
from msfusion.learn.objective import Objective
from msfusion.learn.round import play
from msfusion.models import build
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation


class Counting(TorchDispatchMode):
    """Operations that reach a kernel, and bytes of the memory that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        made = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors(out)}
        self.operations += func.is_view is False
        self.bytes += sum(size for storage, size in made.items() if storage not in own)
        return out


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def counted(work: Callable[[], object]) -> Counting:
    with Counting() as counting:
        work()
    return counting


def images(examples: int = 24) -> LabelledImages:
    draw = torch.Generator().manual_seed(0)
    return LabelledImages(
        torch.randint(256, (examples, 3, 8, 8), generator=draw, dtype=torch.uint8),
        torch.randint(10, (examples,), generator=draw),
        torch.arange(examples),
        torch.full((3, 1, 1), 127.0),
        torch.full((3, 1, 1), 74.0),
    )


def small(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    options = {"resnet18": {"width": 16, "blocks": (1, 1)}, "cnn": {"width": 8, "image": 8}}[name]
    return build(name, None, options)[0]


def simulation(participants: int, train: Train, **changes: Any) -> Simulation:
    data = images()
    run = Run(**{"width": 0.5, "method": "msfusion:residual-cut", "train": train, **changes})
    return Simulation(Problem(small(), (data.batch(torch.arange(2))[0],), [data] * participants, data), run)


# --- operations


def bare(module: nn.Module, config: Train, steps: int, *, innermost: bool) -> None:
    """The loop that does nothing but train, on batches that lie ready, their channels innermost or not."""
    optimizer = make_optimizer(module, config, 0.1, {})
    x, y = images().batch(torch.arange(config.batch))
    if innermost:
        x = x.to(memory_format=torch.channels_last)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_a_step_launches_hardly_more_than_a_bare_one(name: str) -> None:
    """Beside the loop's: the sum of losses, the layout of the images, and the order of the examples, once for
    all of them. That channels lie innermost costs three for each convolution: the gradient of its weight is
    laid out as the weight."""
    config = Train(batch=8, steps=9)

    def steps_of(work: Callable[[int], object]) -> float:
        return (counted(lambda: work(9)).operations - counted(lambda: work(3)).operations) / 6

    def own(steps: int) -> None:
        train(small(name), images(), Objective(), Train(batch=8, steps=steps), 0.1, 0)

    ours = steps_of(own)
    loop, plain = (
        steps_of(lambda steps, inner=inner: bare(small(name), config, steps, innermost=inner))
        for inner in (True, False)
    )
    convolutions = sum(isinstance(part, nn.Conv2d) for part in small(name).modules())
    assert plain > 40
    assert ours <= loop + 4, f"{ours} operations per step, {loop} in the bare loop"
    assert ours <= plain + 4 + 3 * convolutions, f"{ours} operations per step, {plain} in a plain loop"


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_a_sub_model_lies_in_memory_as_its_images_do(name: str) -> None:
    """So that no weight's gradient is laid out anew in a step, as in the loop over such images: two
    operations less for each convolution, at least."""
    data = images()
    problem = Problem(small(name), (data.batch(torch.arange(2))[0],), [data], data)
    run = Simulation(problem, Run(width=1.0, method="fedavg"))
    windows = run.learner.windows(0, run.participants[0])
    module = run.setup.submodels.load(windows, run.store.pull(0, windows))

    def steps_of(work: Callable[[int], object]) -> float:
        return (counted(lambda: work(9)).operations - counted(lambda: work(3)).operations) / 6

    ours = steps_of(lambda n: train(module, data, Objective(), Train(batch=8, steps=n), 0.1, 0))
    loop = steps_of(lambda n: bare(small(name), Train(batch=8), n, innermost=True))
    convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    assert ours <= loop + 4 - 2 * convolutions, f"{ours} operations per step, {loop} in the bare loop"


# --- bytes


def test_a_round_makes_no_copy_of_a_sub_model_per_participant() -> None:
    """Pull, load, hand over, merge: what they make for one more participant is a fraction of its sub-model.
    Local training of no use is taken away: the same steps, counted alone."""
    made = {}
    config = Train(batch=8, steps=1, momentum=0.0)
    for number in (2, 6):
        run = simulation(number, config)
        first = lambda run=run: play(0, run.participants, run.learner, run.store, 1.0, Carried())  # noqa: E731
        first()  # the sums and the module are made once
        made[number] = counted(first).bytes
    run = simulation(1, config)
    windows = run.learner.windows(0, run.participants[0])
    module = run.setup.submodels.load(windows, run.store.pull(0, windows))
    local = counted(lambda: train(module, images(), Objective(), config, 0.05, 0)).bytes
    held = sum(p.nbytes for p in module.parameters())
    each = (made[6] - made[2]) / 4 - local
    assert each < 0.1 * held, f"{each:,.0f} bytes beside training, {held:,} in a sub-model"


def test_a_copy_per_participant_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same count with contributions that are copied."""
    run = simulation(2, Train(batch=8, steps=1, momentum=0.0))

    def work() -> None:
        play(0, run.participants, run.learner, run.store, 1.0, Carried())

    work()
    lent = counted(work).bytes
    plain = run.setup.submodels.unload
    monkeypatch.setattr(run.setup.submodels, "unload", lambda w, v, lend: plain(w, v, lend=False))
    held = run.setup.submodels.parameters(run.participants[0].widths) * 4
    assert counted(work).bytes - lent >= 2 * held


class Alive(TorchDispatchMode):
    """Bytes of the memory that operations made and that is still held."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            storage = tensor.untyped_storage()
            self._made[storage._cdata] = storage._weak_ref(), storage.nbytes()
        return out

    def bytes(self) -> int:
        alive = 0
        for reference, size in self._made.values():
            storage = torch.UntypedStorage._new_with_weak_ptr(reference)
            alive += size if storage is not None else 0
        return alive


def test_the_garbage_collector_passes_over_what_is_older_than_the_run() -> None:
    run, seen = simulation(2, Train(batch=8, steps=1)), []
    assert gc.get_freeze_count() == 0
    run.run(watch=lambda record: seen.append(gc.get_freeze_count()))
    assert min(seen) > 0
    assert gc.get_freeze_count() == 0


def held_after(participants: int, sample: float, rounds: int = 2) -> int:
    run = simulation(participants, Train(batch=8, steps=1), sample=sample)
    carried = Carried()
    with Alive() as alive:
        for round in range(rounds):
            present = run.setup.attendance.present(round, run.participants)
            carried = play(round, present, run.learner, run.store, 1.0, carried).carried
        return alive.bytes()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_participants() -> None:
    """10 of 10 and 50 of 1,000: what is held after the rounds is the same; data are shared here."""
    few, many = held_after(10, 1.0), held_after(1000, 0.05)
    assert few > 0
    assert many <= 1.05 * few, f"{many:,} bytes with 1,000 participants, {few:,} with 10"
