"""What every runtime derives alike from the settings and the captured model; it looks at no values."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from msfusion.capture import Capture
from msfusion.core import apart, widths
from msfusion.core.apart import sub_models
from msfusion.core.axes import AxisMap, Units, Widths, runs_of
from msfusion.core.coverage import Coverage
from msfusion.core.overlap import Signal, State, advance
from msfusion.core.twins import Twins
from msfusion.core.windows import DoubleShift, Schedule
from msfusion.errors import UserError
from msfusion.learn.attendance import Attendance
from msfusion.learn.capacity import Capacity
from msfusion.learn.cost import Cost
from msfusion.learn.initial import Start
from msfusion.learn.labels import check_range, label_counts, logit_adjustment
from msfusion.learn.learner import Counted, Learner, Participant
from msfusion.learn.methods import Method, Setting, get_method
from msfusion.learn.objective import Objective
from msfusion.learn.scripts import Scripts
from msfusion.learn.submodels import SubModels
from msfusion.learn.together import Batched, Together
from msfusion.runtimes import demands
from msfusion.runtimes.run import Run


class Setup:
    """Who trains which widths, by which method; the same for every participant of a run, wherever it runs.

    participants: how many there are.
    device: where sub-models train.
    capacities: what participants can afford, in turn, where the settings do not say it.
    Its ``plans`` are the widths that participants have, in turn.
    Raises UserError for settings that cannot work with this model.
    """

    def __init__(
        self,
        captured: Capture,
        example: tuple[Tensor, ...],
        objective: Objective,
        run: Run,
        *,
        participants: int,
        device: torch.device,
        capacities: Sequence[Capacity] = (),
    ) -> None:
        self.run, self.captured, self.objective = run, captured, objective
        self.method: Method = get_method(run.method)
        self.contrast = run.contrast if self.method.contrast and run.contrast.weight else None
        self.head = demands.head_of(captured, objective) if run.mask_unseen else {}
        self.bias = demands.bias_of(captured, objective, run.train) if run.logit_adjustment else None
        self.attendance = attendance_of(run, exchange=self.exchange)
        demands.check_trained(captured)
        demands.check_logits(objective, complements=self.complements)
        demands.check_compiled(run, self.contrast)
        demands.check_optimizer(run.train)
        alone = run.compile and run.batched != "on"
        self.submodels = SubModels(
            captured,
            example,
            device,
            self.method.scale_power,
            compiled=alone,
            free_layout=objective.custom is None,
            apart=self.method.apart,
            heard=run.train.batch if self.complements else 0,
        )
        at_once: Batched = "off" if alone else run.batched
        keeps = run.train.keep_optimizer
        changing = self._warned_of_buffers()
        self.together = Together(
            self.submodels,
            at_once,
            self.contrast,
            keeps,
            compiled=run.compile,
            changes_buffers=bool(changing),
            complements=self.complements,
        )
        self.passes = Scripts() if self._scripts() else None
        self.plans = self._plans_of((capacities or self._capacities())[:participants])
        demands.check_batch(run.train, self.submodels, self.plans)
        if self.method.apart:
            demands.check_apart(run, captured, self.plans, complements=self.complements)
        self.setting = Setting(
            captured.axes,
            narrowest(self.plans, captured.axes),
            participants,
            run.seed,
            twins=self._tie is not None,
            widest=widest(self.plans, captured.axes),
        )
        self._warn_of_a_rate_that_stays()

    @property
    def twins(self) -> Twins | None:
        """Units that start as copies of one another, where the settings want any."""
        tie = self._tie
        own = self.captured.axes, self.setting.narrowest
        return None if tie is None else Twins(*own, tie, apart=self.method.apart)

    @property
    def start(self) -> Start | None:
        """What a run does to the model's own tensors before it begins: twins become copies; where windows
        share no unit they stay different, and what lies in no sub-model becomes 0."""
        twins, method, axes, kinds = self.twins, self.method, self.captured.axes, self.setting.narrowest

        def start_(values: Mapping[str, Tensor]) -> None:
            if method.apart:
                apart.start_(values, axes, kinds)
            elif twins:
                twins.start_(values, method.scale_power)

        return start_ if twins or method.apart else None

    @property
    def complements(self) -> bool:
        """Whether sub-models make up for what the others get wrong."""
        return self.run.complement and self.method.apart

    @property
    def _tie(self) -> float | None:
        return self.run.twins if self.method.twins else None

    @property
    def decay(self) -> float:
        """Of server momentum; 0 for none."""
        return self.run.server_momentum if self.method.momentum else 0.0

    @property
    def exchange(self) -> bool:
        """Whether participants exchange anything."""
        return self.method.evaluated != "own"

    @property
    def classes(self) -> int:
        """How many classes the model tells apart; 0 where no setting looks at labels."""
        places = {**self.head, **({self.bias: 0} if self.bias else {})}
        return min((self.captured.axes.shape(name, {})[d] for name, d in places.items()), default=0)

    def participant(self, number: int, data: Dataset[Any]) -> Participant:
        """An owner of ``data``, with the widths that the settings give it."""
        counts = self._label_counts(number, data)
        seen = runs_of(sorted(counts)) if self.head else None
        return Participant(number, data, self.widths(number), seen, self._offsets(counts))

    def known(self, number: int, examples: int = 1, seen: Units | None = None) -> Participant:
        """A participant as the others know it: of its data only the number of examples, and labels seen."""
        return Participant(number, Counted(examples), self.widths(number), seen)

    def coverage(self) -> Coverage:
        """Coverage of the full model, nothing of which is trained yet."""
        return Coverage(self.captured.axes, self.captured.trained, self.setting.narrowest)

    def _label_counts(self, number: int, data: Dataset[Any]) -> Counter[int]:
        """How often a participant has each label, where that counts; UserError for one that no output has."""
        classes = self.classes
        if not classes:
            return Counter()
        counts = label_counts(data)
        check_range(counts, classes, number)
        return counts

    def _offsets(self, counts: Mapping[int, int]) -> dict[str, Tensor]:
        if self.bias is None:
            return {}
        (classes,) = self.captured.axes.shape(self.bias, {})
        return {self.bias: logit_adjustment(counts, classes, self.run.logit_adjustment)}

    def widths(self, participant: int) -> dict[str, int]:
        """The width plan of a participant."""
        return self.plans[participant % len(self.plans)]

    def plan_of(self, capacity: Capacity) -> dict[str, int]:
        """The width plan that one more participant of this capacity would have; UserError where there is
        none."""
        return self._plan(capacity, self.setting.narrowest)

    def affords(self, capacity: Capacity, plan: Widths) -> bool:
        """Whether a participant of this capacity can train these widths."""
        cut = self.method.cut
        axes, names = self.captured.axes, self.captured.parameters
        return cut is None or capacity.affords(plan, axes, names, cut, self._price)

    def _plan(self, capacity: Capacity, kinds: Widths) -> dict[str, int]:
        """kinds: widths of the participant that affords least, where it is known."""
        cut = self.method.cut
        if cut is None:
            return {}
        if self.method.apart and capacity.width is None:
            return self._divided(capacity)
        axes, names = self.captured.axes, self.captured.parameters
        return capacity.plan(axes, names, cut, self._price, kinds=kinds if self._divides else None)

    def _divided(self, capacity: Capacity) -> dict[str, int]:
        """The widest windows that share no unit and fit."""
        plans = list(apart.divided(self.captured.axes))
        for plan in plans:
            if self.affords(capacity, plan):
                return plan
        raise UserError(
            f"expected a capacity that holds a sub-model of {self.run.method}, of which there are "
            f"{sub_models(plans[-1], self.captured.axes)} at most, got less; give participants more, or take "
            "msfusion"
        )

    def learner(self, overlap: State) -> Learner:
        """What all participants agree on while an overlap rate holds."""
        run = self.run
        return Learner(
            schedule=self._schedule(overlap),
            submodels=self.submodels,
            objective=self.objective,
            config=run.train,
            rounds=run.rounds,
            seed=run.seed,
            contrast=self.contrast,
            head=self.head,
            together=self.together,
            passes=self.passes,
            twins=None if self.method.apart else self.twins,  # whose units are no copies
            cycle=self._cycle,
        )

    @property
    def _cycle(self) -> int:
        """Rounds until a participant has trained every sub-model, where these complement one another."""
        number = sub_models(self.setting.narrowest, self.captured.axes) if self.complements else 0
        return number if number > 1 else 0

    def first_overlap(self) -> State:
        """The overlap rate that a run begins with."""
        return State(self.run.overlap if self.method.overlap else 0.0)

    def next_overlap(self, overlap: State, round: int, shift: float | None) -> State:
        """The overlap rate after a round.

        shift: the model shift of the round, where it was measured.
        """
        schedule = self._schedule(overlap)
        if not self.method.overlap or not isinstance(schedule, DoubleShift):
            return overlap
        rule = self.run.adapt.rule(self.run.overlap, self.run.rounds)
        return advance(overlap, Signal(round, schedule.epoch(self.setting.narrowest), shift), rule)

    def _scripts(self) -> bool:
        """Making a script takes more memory than a step for a moment: not where memory is what counts. It has
        the loss in it, so not where that differs from step to step."""
        run = self.run
        wanted = run.script and run.memory is None and not run.compile and not self.complements
        return wanted and self.submodels.device.type == "cpu"

    def _warned_of_buffers(self) -> list[str]:
        """Buffers that training changes; the user is told of them."""
        if names := self.submodels.changing_buffers():
            warnings.warn(
                f"training changes {', '.join(names)}, and participants hand over parameters alone: the full "
                "model keeps these buffers as they began",
                stacklevel=2,
            )
        return names

    def _warn_of_a_rate_that_stays(self) -> None:
        schedule, kind = self._schedule(self.first_overlap()), self.run.adapt.kind
        if not self.method.overlap or kind == "constant" or not isinstance(schedule, DoubleShift):
            return
        epoch = schedule.epoch(self.setting.narrowest)
        if epoch >= self.run.rounds:
            warnings.warn(
                f"the overlap rate stays at {self.run.overlap}: with adapt.kind {kind!r} it changes every "
                f"{epoch} rounds, once all pairs of windows have been trained, and the run has "
                f"{self.run.rounds}",
                stacklevel=2,
            )

    def _capacities(self) -> list[Capacity]:
        return self.run.capacities() if self.method.cut else []

    def _plans_of(self, capacities: Sequence[Capacity]) -> list[dict[str, int]]:
        """The width plans that participants have in turn."""
        if self.method.cut is None:
            return [{}]
        axes, names = self.captured.axes, self.captured.parameters
        plans = [self._plan(capacity, {}) for capacity in capacities]
        least = min(plans, key=lambda plan: widths.parameter_count(axes, names, plan))
        if self.method.evaluated == "small":  # one model that everybody can train
            return [least]
        return [
            self._plan(capacity, least) if plan != least else least
            for capacity, plan in zip(capacities, plans, strict=True)
        ]

    @property
    def _divides(self) -> bool:
        """Whether a capacity gives widths that divide the axes: where twins are set, for a method that has
        them, and for those that cut as such a one does, which are compared with it at its shapes."""
        return self.run.twins is not None and (self.method.twins or self.method.cut == "inner")

    def _price(self, plan: Widths) -> Cost:
        return self.submodels.cost(plan, self.run.train, self.contrast)

    def _schedule(self, overlap: State) -> Schedule:
        return self.method.schedule(
            dataclasses.replace(self.setting, overlap=overlap.rate, since=overlap.since)
        )


def device_of(name: str) -> torch.device:
    """The device of a name; raises UserError where it is not at hand."""
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"expected device 'cpu', as no GPU is at hand, got {name!r}")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"expected a device such as 'cpu' or 'cuda:0', got {name!r}") from None


def attendance_of(run: Run, *, exchange: bool) -> Attendance:
    """Who takes part; without exchange nothing gets lost."""
    if run.loss_rate + run.late_rate > 1:
        raise UserError(
            f"expected loss_rate and late_rate of 1 together at most, got {run.loss_rate} and {run.late_rate}"
        )
    return Attendance(run.seed, run.sample, *((run.loss_rate, run.late_rate) if exchange else (0.0, 0.0)))


def narrowest(plans: Sequence[Widths], axes: AxisMap) -> dict[str, int]:
    """The least width of each axis that one of the plans names."""
    named = dict.fromkeys(axis for plan in plans for axis in plan)
    return {axis: min(plan.get(axis, axes.axes[axis].size) for plan in plans) for axis in named}


def widest(plans: Sequence[Widths], axes: AxisMap) -> dict[str, int]:
    """The greatest width of each axis that one of the plans names."""
    named = dict.fromkeys(axis for plan in plans for axis in plan)
    return {axis: max(plan.get(axis, axes.axes[axis].size) for plan in plans) for axis in named}
