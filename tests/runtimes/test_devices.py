"""Rounds on a device other than the CPU, without one: its tensors have shapes and no values, and PyTorch
raises where one of them meets a tensor of the CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from msfusion.capture import capture
from msfusion.learn.adapt import Adapt
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective
from msfusion.learn.submodels import materialised
from msfusion.models.cnn import cnn
from msfusion.models.gpt import gpt
from msfusion.runtimes import simulation
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.setup import Setup

ELSEWHERE = torch.device("lazy", 0)
"""Beside the CPU and meta the one device for which a build of PyTorch without GPUs records gradients."""


class Elsewhere(TorchDispatchMode):
    """Real tensors on the CPU, beside those without values on the device. A number that the CPU asks of the
    device is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = [x for x in pytree.tree_leaves((args, kwargs)) if self._is_there(x)]
        if not found:
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        with self.fake:
            return func(*args, **kwargs)

    def _is_there(self, value: Any) -> bool:
        return (
            value == ELSEWHERE
            if isinstance(value, torch.device)
            else (isinstance(value, FakeTensor) and value.fake_mode is self.fake)
        )


def images() -> tuple[nn.Module, list[TensorDataset]]:
    return cnn(10, 3, 8), [
        TensorDataset(torch.randn(6, 3, 16, 16), torch.randint(10, (6,))) for _ in range(3)
    ]


def text() -> tuple[nn.Module, list[TensorDataset]]:
    return gpt(20, 8, 1, 2, 16, dropout=0.1), [TensorDataset(*torch.randint(20, (2, 6, 8))) for _ in range(3)]


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(simulation, "device_of", lambda name: ELSEWHERE)
    monkeypatch.setattr(nn.Module, "to", materialised)
    with Elsewhere():
        yield


ROUNDS = {
    "one by one": (text, "msfusion", {}),
    "at once": (text, "msfusion", {"batched": "on"}),
    "contrast": (text, "msfusion", {"contrast": Contrast(weight=0.5)}),
    "late, masked": (images, "fedrolex", {"late_rate": 0.5, "mask_unseen": True}),
    "measured": (images, "msfusion", {"adapt": Adapt(measure=True), "batched": "on"}),
    "scattered": (text, "random", {}),
    "no exchange": (text, "standalone", {}),
}


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    "name", ["one by one", *(pytest.param(n, marks=pytest.mark.slow) for n in list(ROUNDS)[1:])]
)
def test_rounds(name: str) -> None:
    made, method, more = ROUNDS[name]
    model, data = made()
    example = (data[0].tensors[0][:2],)
    captured = capture(model, example)
    problem = Problem(model, example, data, data[0], Objective())
    run = Run(method=method, width=0.5, rounds=2, train=Train("adamw", batch=4, steps=2, clip=1.0), **more)
    result = simulation.Simulation(problem, run, captured=captured).run()
    assert len(result.history) == 2
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {ELSEWHERE}


def test_values_and_a_memory_that_lie_on_the_cpu() -> None:
    """As peers have them: what they receive and keep is in main memory."""
    model, data = text()
    example = (data[0].tensors[0][:2],)
    problem = Problem(model, example, data, data[0], Objective())
    run = Run(width=0.5, train=Train(batch=4, steps=2), contrast=Contrast(weight=0.5))
    here = simulation.Simulation(problem, run)
    setup = Setup(
        here.setup.captured,
        example,
        problem.objective,
        run,
        participants=3,
        device=ELSEWHERE,
    )
    learner, one = setup.learner(setup.first_overlap()), here.participants[0]
    first, second = (learner.windows(round, one) for round in (0, 1))
    _, _, kept = here.learner.train(0, one, first, here.store.pull(0, first))
    with Elsewhere():
        found, _, _ = learner.train(1, one, second, here.store.pull(0, second), kept)
    assert {value.device for value in found.values.values()} == {ELSEWHERE}
