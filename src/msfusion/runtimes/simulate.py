"""A simulation of a model and datasets at hand, as Python code asks for one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from msfusion.data import fetch
from msfusion.errors import UserError
from msfusion.learn.local import seeded
from msfusion.learn.objective import Objective
from msfusion.runtimes.run import Problem, Run, as_tuple, check_participants
from msfusion.runtimes.simulation import Result, Simulation
from msfusion.settings import filled


def simulate(
    model: nn.Module,
    participants: Sequence[Dataset[Any]],
    test: Dataset[Any],
    run: Run | None = None,
    *,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    logits_alone: bool = False,
    example: tuple[Tensor, ...] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
) -> Result:
    """Train ``model`` in place, together with one participant per dataset.

    participants, test: datasets of (input, target) pairs; at least one example each.
    loss: (output, targets) -> mean loss; the default is cross-entropy of logits (..., classes). It sees what
        a sub-model returns and nothing else of it: ``model``, its parameters and its attributes are those of
        the full model, which does not train itself, and parameters of the loss are not trained. It remembers
        nothing from one call to the next, as processes would not share it.
    logits_alone: of an output with logits and more, ``loss`` reads the logits alone; otherwise all of it is
        kept whole.
    example: example inputs, if the first two training examples do not serve.
    out: run directory for records and checkpoints; None keeps nothing on disk.
    resume: go on with the run in ``out``; settings, model and numbers of examples must be those of its start,
        and so must loss and examples, which nobody can check.
    Raises UserError for settings or data that cannot work.
    """
    _check_module(model)
    if isinstance(participants, Dataset | DataLoader):
        raise UserError(
            f"expected a list of datasets, one per participant, got one {type(participants).__name__}: split "
            "it, or give [dataset] for a single participant"
        )
    if isinstance(participants, Mapping):
        raise UserError(
            f"expected a list of datasets, one per participant, got a {type(participants).__name__}: give "
            "list(participants.values())"
        )
    if run is not None and not isinstance(run, Run):
        raise UserError(f"expected run as msfusion.Run(width=0.5, ...), got {type(run).__name__}")
    participants = list(participants)
    check_participants(participants)
    if example is None:
        with seeded(0, torch.device("cpu")):  # datasets may draw
            example = (fetch(participants[0], torch.tensor([0, 0]), None)[0],)
    problem = Problem(
        model,
        as_tuple(example),
        participants,
        test,
        Objective(loss, logits_alone=logits_alone),
        type(model).__name__,
    )
    settings = filled(Run, {}, dataclasses.asdict(run or Run(share=0.25)))
    with torch.enable_grad():
        simulation = Simulation(problem, settings, out=None if out is None else Path(out))
        _check_test_shape(simulation)
        return simulation.run(resume=resume)


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UserError(f"expected model as a torch.nn.Module, got {got}: give an object of such a class")


def _check_test_shape(simulation: Simulation) -> None:
    """Say before the first round what the first evaluation would fail on."""
    problem = simulation.problem
    with seeded(0, torch.device("cpu")):  # datasets may draw
        inputs, _ = fetch(problem.test, torch.tensor([0, 0]), None)
    first, *more = problem.example
    if not more and inputs.shape[1:] != first.shape[1:] and not simulation.setup.submodels.takes(inputs):
        raise UserError(
            f"expected test inputs of shape {tuple(first.shape[1:])} as those that the model trains on, got "
            f"{tuple(inputs.shape[1:])}, which it does not take: give both the same shape"
        )
