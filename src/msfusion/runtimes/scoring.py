"""Scores of what a run trains, as its method defines it."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from msfusion.core.axes import AxisMap, Selection
from msfusion.core.seeds import derive
from msfusion.errors import Diverged
from msfusion.learn.batch_norm import estimate_batch_norm
from msfusion.learn.evaluation import Evaluation, evaluate
from msfusion.learn.learner import Learner, Participant
from msfusion.learn.methods import Evaluated
from msfusion.learn.store import Store
from msfusion.runtimes.run import Problem


class Scores:
    """Scores of a problem's model on its test set, with batch-norm statistics estimated anew.

    what: whose score the method reports.
    """

    def __init__(self, problem: Problem, what: Evaluated, seed: int) -> None:
        self._problem = problem
        self._what = what
        self._seed = seed

    def evaluate(self, learner: Learner, participants: Sequence[Participant], store: Store) -> Evaluation:
        """Score what the method trains."""
        if self._what == "own":
            return mean([self._small(learner, p, store, [p.data]) for p in participants])
        if self._what == "small":
            return self._small(learner, participants[0], store, self._problem.train)
        if self._what == "widest" and (first := _widest(participants, learner.submodels.axes)):
            return self._cut_out(learner, 0, first, store, self._problem.train)
        return self._score(self._problem.model, self._problem.train)

    def estimate(self, module: nn.Module, data: Sequence[Dataset[Any]]) -> None:
        """Estimate a model's batch-norm statistics from training data."""
        estimate_batch_norm(module, data, derive(self._seed, "batch norm"))

    def _small(
        self, learner: Learner, participant: Participant, store: Store, data: Sequence[Dataset[Any]]
    ) -> Evaluation:
        return self._cut_out(learner, participant.number, learner.windows(0, participant), store, data)

    def _cut_out(
        self, learner: Learner, number: int, windows: Selection, store: Store, data: Sequence[Dataset[Any]]
    ) -> Evaluation:
        values = store.pull(number, windows)
        return self._score(learner.submodels.load(windows, values), data)

    def _score(self, module: nn.Module, data: Sequence[Dataset[Any]]) -> Evaluation:
        self.estimate(module, data)
        seed = derive(self._seed, "evaluation")
        return evaluate(module, self._problem.test, self._problem.objective, seed=seed)


def _widest(participants: Sequence[Participant], axes: AxisMap) -> Selection:
    """The first units of every axis, as many as any participant trains, of those that none trains whole."""
    cut = {axis for one in participants for axis in one.widths}
    most = {axis: max(one.widths.get(axis, axes.axes[axis].size) for one in participants) for axis in cut}
    return {axis: ((0, width),) for axis, width in most.items() if width < axes.axes[axis].size}


def mean(scores: list[Evaluation]) -> Evaluation:
    """Mean of several evaluations on one test set."""
    accuracies = [s.accuracy for s in scores if s.accuracy is not None]
    return Evaluation(
        loss=sum(s.loss for s in scores) / len(scores),
        accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        examples=scores[0].examples,
    )


def check_finite(score: Evaluation, done: int) -> None:
    """Raise Diverged where a model diverged although each of its parameters is finite: its loss is not.

    done: rounds that the model has been trained for.
    """
    if not math.isfinite(score.loss):
        raise Diverged(
            f"round {done - 1}: expected a finite loss of the trained model on the test set, got "
            f"{score.loss}; start again with a lower train.lr or with train.clip, or look for NaN or "
            "infinity in the test data"
        )
