"""What the records say of a run: who trains what at which cost, and what happened in a round."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from msfusion import records
from msfusion.core.axes import Widths
from msfusion.learn.cost import Cost
from msfusion.learn.evaluation import Evaluation
from msfusion.learn.learner import Learner, Participant
from msfusion.learn.round import Trained
from msfusion.learn.submodels import widths_of
from msfusion.runtimes.facts import run_facts
from msfusion.runtimes.run import Run

_REASONS = {"late": "contribution came one round late", "lost": "contribution lost"}
_NEVER = "contribution came late, after the last round so far"


@dataclass(frozen=True)
class Described:
    """What a run is called in its records.

    settings: the configuration.
    model: name of the model.
    metric: what the full model is judged by.
    data: digest of the examples, where there is one.
    """

    settings: Mapping[str, Any]
    model: str
    metric: Literal["accuracy", "loss"]
    data: str | None = None


class Scribe:
    """Puts a run into records.

    participants: those that the header tells of.
    plans: the widths of all, also of those that are not there: they decide which axes are pictured.
    exchange: whether participants exchange anything; otherwise no bytes are counted.
    travelling: type of values -> the one in which they travel, where that is another.
    """

    def __init__(
        self,
        learner: Learner,
        participants: Sequence[Participant],
        plans: Iterable[Widths],
        *,
        exchange: bool,
        travelling: Callable[[torch.dtype], torch.dtype] | None = None,
    ) -> None:
        self._learner, self._travelling = learner, travelling
        self._participants = participants
        self._exchange = exchange
        axes = learner.submodels.axes.axes
        cut = (axis for plan in plans for axis, width in plan.items() if width < axes[axis].size)
        self._pictured = pictured(dict.fromkeys(cut))

    def header(self, run: Run, described: Described, workers: str | None = None) -> records.Header:
        """The header of a run: the full model, and every participant's share and cost.

        workers: which processes train, in words.
        """
        submodels = self._learner.submodels
        full = submodels.parameters({})
        return {
            "kind": "header",
            "format": records.FORMAT,
            "method": run.method,
            "seed": run.seed,
            "config": json.loads(json.dumps(described.settings)),
            **run_facts(workers, described.data),
            "metric": described.metric,
            "model": {
                "name": described.model,
                "parameters": full,
                "axes": {axis: info.size for axis, info in submodels.axes.axes.items()},
            },
            "participants": [self._participant(p, full) for p in self._participants],
            "pictured": self._pictured,
        }

    def round(
        self,
        round: int,
        trained: Sequence[Trained],
        *,
        coverage: float,
        overlap: float,
        shift: float | None,
        one_by_one: str | None = None,
        evaluation: Evaluation | None,
        seconds: float,
        dropped: Sequence[records.Dropped] = (),
    ) -> records.Round:
        """The record of one round.

        dropped: whose contributions were not merged in it, beside those whose fate says so.
        """
        plans = [widths_of(one.windows) for one in trained]
        costs = [
            self._learner.cost(one.participant, plan, first=one.first)
            for one, plan in zip(trained, plans, strict=True)
        ]
        arrived = [one for one in trained if one.fate == "on time"]
        examples = sum(one.participant.examples for one in trained)
        record: records.Round = {
            "kind": "round",
            "round": round,
            "participants": [one.participant.number for one in arrived],
            "dropped": [*(self._dropped(round, one) for one in trained if one.fate != "on time"), *dropped],
            "train_loss": sum(one.loss * one.participant.examples for one in trained) / examples
            if trained
            else None,
            "flops": sum(cost.flops_per_step for cost in costs) * self._learner.config.steps,
            "bytes": sum(map(self._bytes, costs, plans)),
            "coverage": coverage,
            "overlap": overlap,
            "shift": shift,
            "windows": self._windows(arrived),
            "seconds": seconds,
            "evaluation": None if evaluation is None else as_record(evaluation),
        }
        if one_by_one is not None:
            record["one_by_one"] = one_by_one
        return record

    def _dropped(self, round: int, one: Trained) -> records.Dropped:
        """The entry of a participant whose contribution was not merged in its round."""
        never = one.fate == "late" and round + 1 == self._learner.rounds
        return {"participant": one.participant.number, "reason": _NEVER if never else _REASONS[one.fate]}

    def _participant(self, participant: Participant, full: int) -> records.ParticipantFacts:
        cost = self._learner.cost(participant, participant.widths)
        return {
            "participant": participant.number,
            "examples": participant.examples,
            "share": cost.parameters / full,
            "parameters": cost.parameters,
            "flops_per_step": cost.flops_per_step,
            "memory_bytes": cost.memory_bytes,
            "bytes_per_round": self._bytes(cost, participant.widths),
        }

    def _bytes(self, cost: Cost, widths: Widths) -> int:
        if not self._exchange or self._travelling is None:
            return cost.bytes_per_round if self._exchange else 0
        submodels = self._learner.submodels
        received = [value for value in submodels.shapes(widths).values() if isinstance(value, nn.Parameter)]
        sent = [*received, *submodels.trained(widths).values()]
        return sum(value.numel() * self._travelling(value.dtype).itemsize for value in sent)

    def _windows(self, trained: Sequence[Trained]) -> dict[str, dict[str, records.Ranges]]:
        return {
            axis: {
                str(one.participant.number): [list(run) for run in one.windows[axis]]
                for one in trained
                if axis in one.windows
            }
            for axis in self._pictured
        }


def pictured(plan: Iterable[str]) -> list[str]:
    """At most three axes whose windows the records show: the first, the middle and the last that is cut."""
    axes = list(plan)
    return [axes[i] for i in sorted({0, len(axes) // 2, len(axes) - 1})] if axes else []


def as_record(evaluation: Evaluation) -> records.Evaluation:
    """The evaluation as the records state it."""
    return {
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        "examples": evaluation.examples,
    }
