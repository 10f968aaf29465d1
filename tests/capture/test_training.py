"""Every model of the zoo is trained by MSfusion: no error, and the loss falls."""

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hf_zoo import HF_ROWS
from laws import captured, has_batch_norm, model_of
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from vision_zoo import VISION_ROWS
from zoo import ROWS, Row

from msfusion.capture import Capture, capture
from msfusion.learn.local import Train
from msfusion.learn.objective import Objective
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.simulation import Simulation

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about itself

PARTICIPANTS, EXAMPLES, ROUNDS = 2, 8, 3
IMAGES = Train("adam", lr=1e-3, batch=EXAMPLES, steps=5)
OTHERS = Train("adam", lr=3e-3, batch=EXAMPLES, steps=5)
QUICK = {"mlp", "flatten cnn", "gpt"}


class OneInput(nn.Module):
    """A model of two inputs (encoder and decoder) as one of the first: the tokens that enter the decoder are
    the same for every example."""

    def __init__(self, model: nn.Module, first: str, decoder_input_ids: Tensor) -> None:
        super().__init__()
        self.model, self.first = model, first
        self.register_buffer("start", decoder_input_ids[:1])

    def forward(self, x: Tensor) -> Any:
        start = self.start.expand(x.shape[0], -1)
        return self.model(**{self.first: x, "decoder_input_ids": start})


@cache
def ready(row: Row) -> tuple[nn.Module, Tensor, Capture]:
    """The model, inputs of as many examples as needed, the capture."""
    torch.manual_seed(2)
    args, kwargs = row.inputs(PARTICIPANTS * EXAMPLES)
    if not kwargs:
        return model_of(row), args[0], captured(row)
    first = next(iter(kwargs))
    model = OneInput(model_of(row), first, kwargs["decoder_input_ids"])
    return model, kwargs[first], capture(model, (kwargs[first][:2],))


def first_tensor(output: Any) -> Tensor:
    """The logits; a model without any returns what it makes of its input first."""
    if isinstance(output, Tensor):
        return output
    found = output.logits if "logits" in output else next(iter(output.values()))
    assert isinstance(found, Tensor)
    return found


def closeness(output: Any, targets: Tensor) -> Tensor:
    return F.mse_loss(first_tensor(output), targets)


def learnable(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Objective]:
    """Inputs, targets and loss: tokens that come out again where there is one output per token, two classes
    that differ in their inputs where there are classes, a constant picture where pictures come out."""
    with torch.no_grad():
        output = copy.deepcopy(model).eval()(x)
        shape = first_tensor(output).shape
    if (not isinstance(output, Tensor) and "logits" not in output) or len(shape) == 4:
        return x, torch.full(shape, 0.5), Objective(closeness)
    if shape[:-1] == x.shape:
        return x, x % shape[-1], Objective()
    classes = torch.arange(len(x)) % 2
    x = x.clone()
    for label in (0, 1):
        x[classes == label] = x[label] + (x[classes == label] if x.is_floating_point() else 0)
    return x, classes.view(-1, *[1] * (len(shape) - 2)).expand(shape[:-1]), Objective()


def marks(row: Row) -> list[pytest.MarkDecorator]:
    return [] if row.name in QUICK else [pytest.mark.slow]


@torch.no_grad()
def loss_of(module: nn.Module, data: TensorDataset, objective: Objective) -> float:
    """Without dropout, with the statistics of the batch, as in training."""
    module.eval()
    for part in module.modules():
        part.training = isinstance(part, nn.modules.batchnorm._BatchNorm)
    x, targets = data.tensors
    return float(objective.loss(module(x), targets))


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=marks(row)) for row in [*ROWS, *VISION_ROWS, *HF_ROWS]]
)
def test_the_loss_falls(row: Row) -> None:
    """In one round, that of every participant's sub-model on its own data. In three rounds, that of the full
    model on all data, but for models with batch norm: on 16 examples their estimated statistics decide."""
    model, x, found = ready(row)
    x, targets, objective = learnable(model, x)
    parts = [
        TensorDataset(*part) for part in zip(x.chunk(PARTICIPANTS), targets.chunk(PARTICIPANTS), strict=True)
    ]
    problem = Problem(copy.deepcopy(model), (x[:2],), parts, TensorDataset(x, targets), objective)
    run = Run(width=0.5, rounds=ROUNDS, evaluate_every=ROUNDS, train=IMAGES if x.ndim == 4 else OTHERS)
    simulation = Simulation(problem, run, captured=found)
    learner, store = simulation.learner, simulation.store
    for participant, own in zip(simulation.participants, parts, strict=True):
        windows = learner.windows(0, participant)
        values = store.pull(participant.number, windows)
        before = loss_of(learner.submodels.load(windows, values), own, objective)
        contribution, _, _ = learner.train(0, participant, windows, values)
        after = learner.submodels.load(windows, {**values, **contribution.values})
        assert loss_of(after, own, objective) < before
    first = simulation.evaluate().loss
    result = simulation.run()
    if not has_batch_norm(model):
        assert result.evaluation.loss < first
    losses = [record["train_loss"] for record in result.history]
    assert len(losses) == ROUNDS
    assert all(loss is not None and math.isfinite(loss) for loss in losses)
    assert all(record["windows"] for record in result.history)
