"""Local training: what all participants agree on, and what one makes of the values of its windows."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from msfusion.core.axes import Selection, Units, Widths
from msfusion.core.cut import overlay
from msfusion.core.merge import Contribution
from msfusion.core.seeds import derive
from msfusion.core.twins import Twins
from msfusion.core.windows import Schedule
from msfusion.data import fetch
from msfusion.errors import Diverged, TooFew, UserError
from msfusion.learn.complement import Complement, heard_like
from msfusion.learn.contrast import Compared, Contrast
from msfusion.learn.cost import Cost
from msfusion.learn.local import Passes, Train, learning_rate, make_optimizer, seeded, state_like, train
from msfusion.learn.memory import Memory
from msfusion.learn.objective import Objective
from msfusion.learn.optimizer import Optimizer
from msfusion.learn.store import Store
from msfusion.learn.submodels import SubModels, plan_of, trained_names, widths_of
from msfusion.learn.together import Together
from msfusion.learn.ways import Group, Trained


@dataclass(frozen=True)
class Participant:
    """An owner of private data that trains.

    widths: units of each cut axis that it can afford.
    seen: labels that it has seen, where rows of the head for others are left out of its contribution.
    offsets: parameter -> what is added to it while the participant trains, and taken away afterwards.
    """

    number: int
    data: Dataset[Any]
    widths: Mapping[str, int]
    seen: Units | None = None
    offsets: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        return len(self.data)  # type: ignore[arg-type]


class Counted(Dataset[Any]):
    """Data of somebody else: all that is known of them is their number."""

    def __init__(self, examples: int) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return self._examples


@dataclass(frozen=True)
class Ready:
    """A participant and the windows that it is to train."""

    participant: Participant
    windows: Selection


@dataclass(frozen=True)
class Learner:
    """What all participants agree on.

    contrast: the contrastive loss, or None for the task's loss alone.
    head: parameter -> its dimension that counts the classes.
    together: trains participants at once; None trains one by one.
    passes: forward and backward passes of those who train one by one; by default those of ``local``.
    twins: who is whose: from whom a unit takes an optimizer's state that it has not itself.
    cycle: rounds in which a participant goes through all sub-models and these complement one another
        (``complement.py``); 0 where they do not.
    """

    schedule: Schedule
    submodels: SubModels
    objective: Objective
    config: Train
    rounds: int
    seed: int
    contrast: Contrast | None = None
    head: Mapping[str, int] = field(default_factory=dict)
    together: Together | None = None
    passes: Passes | None = None
    twins: Twins | None = None
    cycle: int = 0

    @property
    def remembers(self) -> bool:
        """Whether participants keep anything from one round to the next."""
        return self.contrast is not None or self.config.keep_optimizer or self.cycle > 0

    def remembered(self, widths: Widths) -> dict[str, Tensor]:
        """Tensors like those of a memory, ``Memory.packed``, of a sub-model of these widths."""
        trained = self.submodels.trained(widths)
        values = trained if self.contrast else {}
        like: dict[str, Tensor] = {f"values/{name}": t for name, t in values.items()}
        if self.cycle:
            like |= {f"heard/{name}": t for name, t in self._heard_like(widths).items()}
        if not self.config.keep_optimizer:
            return like
        state = state_like(self.config, trained)
        return like | {f"optimizer/{name}": t for name, t in state.items()}

    def windows(self, round: int, participant: Participant) -> Selection:
        """The units that a participant trains in a round."""
        return self.schedule.windows(round, participant.number, participant.widths)

    def cost(self, participant: Participant, widths: Widths, *, first: bool = False) -> Cost:
        """What a sub-model costs the participant, at its own batch size (smaller where data are few).

        first: in the first round that it trains, without a previous model to turn away from.
        """
        own = replace(self.config, batch=min(self.config.batch, participant.examples))
        return self.submodels.cost(widths, own, None if first else self.contrast)

    def _heard_like(self, widths: Widths) -> dict[str, Tensor]:
        return heard_like(self.submodels.logits(widths), self.config.steps)

    def left_out(self, participant: Participant) -> str | None:
        """Why a participant takes part in no round, whatever the runtime; None where it does.

        A norm that sees a single value per channel has nothing to divide by: torch refuses that. A step with
        its running statistics would be of another model, as they are not merged.
        """
        enough = min(self.config.batch, participant.examples) > 1
        if enough or self.submodels.least_batch(participant.widths) == 1:
            return None
        return (
            "expected batches of at least 2 examples, as the model has batch norm, got a single one; give it "
            "more (data.min_examples), or take a model without batch norm"
        )

    def train(
        self,
        round: int,
        participant: Participant,
        windows: Selection,
        values: Mapping[str, Tensor],
        previous: Memory | None = None,
        *,
        lend: bool = False,
    ) -> tuple[Contribution, float, Memory | None]:
        """Local training from the pulled values; returns what to push, the mean loss, and what the
        participant is to remember, if anything.

        previous: what it remembers from when it last trained. Where that is nothing, there is nothing to
        turn away from: the contrastive loss would be log 1 for any model, and is left out.
        lend: the contribution's values are the module's own, and hold until the next one trains.
        Raises Diverged where the loss is not finite, and TooFew where the participant is left out.
        """
        if reason := self.left_out(participant):
            raise TooFew(f"participant {participant.number}: {reason}")
        offsets = participant.offsets
        given = _offset(values, offsets)
        module = self.submodels.load(windows, given)
        compared = self._compared(windows, values, previous, offsets)
        lr = learning_rate(self.config, round, self.rounds)
        seed = self._seed(round, participant)
        optimizer = self._optimizer(module, lr, windows, previous)
        if compared is not None:
            self._check(compared, module, participant)
        objective = self._objective(round, windows, previous)
        own = module, participant.data, objective, self.config
        loss = train(*own, lr, seed, compared, self.passes, optimizer)
        _check_loss(round, participant, loss)
        optimizer.zero_grad()
        del compared  # the memory of both is that of the copies which follow
        trained = _offset(self.submodels.unload(windows, given, lend=lend), offsets, -1.0)
        memory = self._memory(windows, trained, module, optimizer, objective) if self.remembers else None
        return self.contribution(participant, windows, trained), loss, memory

    def _optimizer(
        self, module: nn.Module, lr: float, windows: Selection, previous: Memory | None
    ) -> Optimizer:
        rates = self.submodels.rates(widths_of(windows), self.config)
        optimizer = make_optimizer(module, self.config, lr, rates)
        if previous is not None and self.config.keep_optimizer:
            kinds = self.twins.of if self.twins else lambda dim: None
            state = previous.optimizer_for(windows, self.submodels.axes, kinds)
            optimizer.restore(trained_names(module), state)
        return optimizer

    def _objective(self, round: int, windows: Selection, previous: Memory | None) -> Objective:
        if not self.cycle:
            return self.objective
        like = self._heard_like(widths_of(windows))["logits"]
        return Complement(
            language=self.objective.language,
            said=torch.zeros_like(like, device=self.submodels.device),
            heard=previous.heard if previous is not None else {},
            cycle=1 + round // self.cycle,
        )

    def _memory(
        self,
        windows: Selection,
        trained: Mapping[str, Tensor],
        module: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
    ) -> Memory:
        values = {name: value.clone() for name, value in trained.items()} if self.contrast else {}
        state = optimizer.state(trained_names(module)) if self.config.keep_optimizer else {}
        heard = objective.memory() if isinstance(objective, Complement) else {}
        return Memory(windows, values, state, heard)

    def train_together(
        self, round: int, group: Sequence[Ready], store: Store
    ) -> Generator[tuple[Contribution, float]] | None:
        """The same for a group at once; None where the model cannot. The values of the
        contributions are lent."""
        assert self.together is not None

        def fill(place: int, into: Mapping[str, Tensor]) -> None:
            one = group[place]
            store.pull(one.participant.number, one.windows, into)
            for name, offset in one.participant.offsets.items():
                into[name].add_(offset.to(into[name]))

        work = Group(
            widths=[widths_of(one.windows) for one in group],
            fill=fill,
            data=[one.participant.data for one in group],
            objective=self.objective,
            config=self.config,
            lr=learning_rate(self.config, round, self.rounds),
            seeds=[self._seed(round, one.participant) for one in group],
        )
        trained = self.together.train(work)
        return None if trained is None else self._handed_over(round, group, trained)

    def _handed_over(
        self, round: int, group: Sequence[Ready], trained: Generator[Trained]
    ) -> Generator[tuple[Contribution, float]]:
        with closing(trained):
            for one, (shifted, loss) in zip(group, trained, strict=True):
                _check_loss(round, one.participant, loss)
                values = _offset(shifted, one.participant.offsets, -1.0)
                yield self.contribution(one.participant, one.windows, values), loss

    def groups(self, round: int, participants: Sequence[Participant]) -> list[list[Ready]]:
        """Those who train at once, with their windows."""
        ready = [Ready(one, self.windows(round, one)) for one in participants]
        if self.together is None or not self.together.tries:
            return [[one] for one in ready]
        shapes = [
            (plan_of(widths_of(one.windows)), min(self.config.batch, one.participant.examples))
            for one in ready
        ]
        data = self.config.steps * self.submodels.example_bytes  # a device may have all batches of a round
        memory = {
            shape: self.cost(one.participant, widths_of(one.windows)).memory_bytes + shape[1] * data
            for shape, one in zip(shapes, ready, strict=True)
        }
        return self.together.groups(list(zip(shapes, ready, strict=True)), memory)

    def _seed(self, round: int, participant: Participant) -> int:
        first = round - round % self.cycle if self.cycle else round  # batches stay for a cycle
        return derive(self.seed, "local training", first, participant.number)

    def contribution(
        self, participant: Participant, windows: Selection, values: Mapping[str, Tensor]
    ) -> Contribution:
        """What a participant hands over, its values being these."""
        seen = participant.seen
        only = {name: (d, seen) for name, d in self.head.items()} if seen is not None else {}
        return Contribution(participant.number, windows, values, participant.examples, only)

    def _compared(
        self,
        windows: Selection,
        values: Mapping[str, Tensor],
        previous: Memory | None,
        offsets: Mapping[str, Tensor],
    ) -> Compared | None:
        """The pulled values, and those with the previous ones on the units that both windows hold."""
        if self.contrast is None or previous is None:
            return None
        dims = self.submodels.axes.tensors
        own = {
            name: overlay(values[name], windows, value, previous.windows, dims[name])
            for name, value in previous.values.items()
        }
        return Compared(
            self.contrast,
            merged=self.submodels.scaled(windows, _offset(values, offsets)),
            previous=self.submodels.scaled(windows, _offset({**values, **own}, offsets)),
        )

    def _check(self, compared: Compared, module: nn.Module, participant: Participant) -> None:
        """Look once per module whether representations belong to examples one by one."""
        examples = min(self.config.batch, participant.examples)
        if module in self.submodels.compared or examples < 2:
            return
        device = self.submodels.device
        with seeded(self.seed, device):  # datasets may draw from it
            inputs, _ = fetch(participant.data, torch.arange(examples), None)
            compared.check(module, inputs.to(device))
        self.submodels.compared.add(module)


def check_somebody_trains(learner: Learner, participants: Sequence[Participant]) -> None:
    """Raise UserError where every participant is left out of all rounds."""
    reasons = [(one.number, learner.left_out(one)) for one in participants]
    if reasons and all(reason for _, reason in reasons):
        raise UserError(f"participant {reasons[0][0]}, as all others: {reasons[0][1]}")


def _offset(
    values: Mapping[str, Tensor], offsets: Mapping[str, Tensor], by: float = 1.0
) -> Mapping[str, Tensor]:
    """The values, those that have offsets plus so many times these; a frozen one is not handed over."""
    own = {name: offset for name, offset in offsets.items() if name in values}
    return {**values, **{name: values[name] + by * offset.to(values[name]) for name, offset in own.items()}}


def _check_loss(round: int, participant: Participant, loss: float) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"round {round}, participant {participant.number}: expected a finite training loss, got NaN "
            "or infinity; start again with a lower train.lr or with train.clip, or look for such values "
            "in its data"
        )
