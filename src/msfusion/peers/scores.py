"""Scores: of the full model from files, and of a sub-model on a peer's own data."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from msfusion.core.seeds import derive, generator
from msfusion.data import Examples, fetch
from msfusion.learn.batch_norm import estimate_batch_norm
from msfusion.learn.evaluation import Evaluation, evaluate
from msfusion.learn.objective import Objective

OWN_EXAMPLES = 512
"""So many of its own examples, at most, a peer scores its sub-model on in every round."""


class Sample(Examples):
    """Some examples of a dataset, the same ones always."""

    def __init__(self, data: Dataset[Any], most: int, seed: int) -> None:
        examples = len(data)  # type: ignore[arg-type]
        chosen = generator(seed, "own score").sample(range(examples), min(most, examples))
        self._data, self._chosen = data, torch.tensor(sorted(chosen))

    def __len__(self) -> int:
        return len(self._chosen)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return fetch(self._data, self._chosen[indices], None)


def score_own(module: nn.Module, data: Dataset[Any], objective: Objective, seed: int) -> Evaluation:
    """Score a sub-model on some of the participant's own examples."""
    estimate_batch_norm(module, [data], derive(seed, "batch norm"))
    own = Sample(data, OWN_EXAMPLES, seed)
    return evaluate(module, own, objective, seed=derive(seed, "evaluation"))


def score_full(
    model: nn.Module,
    values: Mapping[str, Tensor],
    data: Dataset[Any],
    test: Dataset[Any],
    objective: Objective,
    seed: int,
) -> Evaluation:
    """Score the full model on a test set, its parameters in files; the statistics of batch norm are estimated
    from this participant's data alone, as nobody else's are at hand."""
    module = with_values(model, values)
    estimate_batch_norm(module, [data], derive(seed, "batch norm"))
    return evaluate(module, test, objective, seed=derive(seed, "evaluation"))


def with_values(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model without values that has the given ones: parameters as they are, buffers copied."""
    module = copy.deepcopy(model)
    places = {id(p): name for name, p in module.named_parameters()}
    made = {key: nn.Parameter(values[name], requires_grad=False) for key, name in places.items()}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = made[id(parameter)]
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(values[name])
    return module
