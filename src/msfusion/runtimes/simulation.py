"""All participants in this process."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.utils.data import Dataset

from msfusion import records
from msfusion.capture import Capture, capture
from msfusion.core import widths
from msfusion.core.axes import AxisMap, Units, runs_of
from msfusion.core.coverage import Coverage, Summary
from msfusion.core.overlap import Signal, State, advance
from msfusion.core.seeds import derive
from msfusion.core.windows import DoubleShift, Schedule
from msfusion.data import fetch
from msfusion.errors import UserError
from msfusion.learn.adapt import Adapt
from msfusion.learn.attendance import Attendance
from msfusion.learn.carried import Carried
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Evaluation, Train, estimate_batch_norm, evaluate
from msfusion.learn.methods import Method, Setting, get_method
from msfusion.learn.objective import Objective
from msfusion.learn.round import Learner, Participant, play
from msfusion.learn.steps import ServerStep, server_step
from msfusion.learn.store import MemoryStore, OwnStore
from msfusion.learn.submodels import SubModels, tensors_of
from msfusion.runtimes import checkpoint
from msfusion.runtimes.facts import run_facts
from msfusion.runtimes.interrupt import Stopped, deferred_interrupt
from msfusion.runtimes.journal import Journal
from msfusion.runtimes.scribe import Scribe
from msfusion.settings import validated


@dataclass(frozen=True)
class Run:
    """Settings of a run, apart from model and data.

    Each participant's part of the model is given by ``width`` (of every axis that the method cuts) or by
    ``share`` (of the full model's parameters, at most); exactly one of them.
    """

    method: str = "msfusion"
    width: Annotated[float, Gt(0), Le(1)] | None = None
    share: Annotated[float, Gt(0), Le(1)] | None = None
    rounds: Annotated[int, Ge(1)] = 20
    seed: int = 0
    overlap: Annotated[float, Ge(0), Lt(1)] = 0.0  # msfusion: share of a window that the next one repeats
    server_step: ServerStep = "constant"
    evaluate_every: Annotated[int, Ge(1)] = 1  # rounds; the last round is always evaluated
    checkpoint_every: Annotated[int, Ge(1)] = 10  # rounds; the last round is always saved
    sample: Annotated[float, Gt(0), Le(1)] = 1.0  # share of the participants that take part in a round
    loss_rate: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the contributions that get lost
    late_rate: Annotated[float, Ge(0), Le(1)] = 0.0  # share that is merged one round later
    mask_unseen: bool = False  # leave the head's rows for labels without examples out of contributions
    device: str = "cpu"
    threads: Annotated[int, Ge(1)] = 1  # of torch's operations; one is fastest for sub-models on a CPU
    train: Train = field(default_factory=Train)
    contrast: Contrast = field(default_factory=Contrast)  # msfusion only
    adapt: Adapt = field(default_factory=Adapt)  # msfusion only: how the overlap rate moves


@dataclass(frozen=True)
class Problem:
    """What is trained on what.

    model: the full model; a simulation trains it in place.
    example: example inputs of the model, a batch of two or more.
    train: one dataset per participant, of (input, target) pairs.
    test: what the full model is scored on.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    train: Sequence[Dataset[Any]]
    test: Dataset[Any]
    objective: Objective = field(default_factory=Objective)
    name: str = "model"

    def __post_init__(self) -> None:
        check_participants(self.train)


@dataclass(frozen=True)
class Result:
    """What came of a run.

    model: the full model, in evaluation mode; its tensors are those that were trained.
    evaluation: the last evaluation, of the full model unless the method says otherwise.
    coverage: share of the parameters trained, and how evenly.
    history: the record of every round of this process.
    """

    model: nn.Module
    evaluation: Evaluation
    coverage: Summary
    history: list[records.Round]

    def save(self, path: str | Path) -> None:
        """Write the full model's parameters and buffers as safetensors; tied tensors once."""
        checkpoint.write(Path(path), tensors_of(self.model), {"format": "pt"})


def simulate(
    model: nn.Module,
    participants: Sequence[Dataset[Any]],
    test: Dataset[Any],
    run: Run | None = None,
    *,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    example: tuple[Tensor, ...] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
) -> Result:
    """Train ``model`` in place, together with one participant per dataset.

    participants, test: datasets of (input, target) pairs; at least one example each.
    loss: (output, targets) -> mean loss; the default is cross-entropy of logits (..., classes).
    example: example inputs, if the first two training examples do not serve.
    out: run directory for records and checkpoints; None keeps nothing on disk.
    Raises UserError for settings or data that cannot work.
    """
    check_participants(participants)
    example = example or (fetch(participants[0], torch.tensor([0, 0]), None)[0],)
    problem = Problem(model, example, participants, test, Objective(loss), type(model).__name__)
    settings = validated(Run, dataclasses.asdict(run or Run(share=0.25)))
    return Simulation(problem, settings, out=Path(out) if out else None).run(resume=resume)


class Simulation:
    """A run of one method on one problem.

    settings: what records and checkpoints state as the configuration; by default ``run`` alone.
    captured: the capture of ``problem.model``, if it is at hand already.
    """

    def __init__(
        self,
        problem: Problem,
        run: Run,
        *,
        out: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        captured: Capture | None = None,
    ) -> None:
        self.problem, self.config = problem, run
        self.method = get_method(run.method)
        device = device_of(run.device)
        self.model = problem.model.to(device)
        captured = captured or capture(self.model, tuple(t.to(device) for t in problem.example))
        self.captured = captured
        parameters = [name for name, _ in self.model.named_parameters()]
        plan = plan_of(captured.axes, parameters, self.method, run)
        head = head_of(captured, problem.objective) if run.mask_unseen else {}
        self.participants = [
            Participant(i, data, plan, labels_of(data) if head else None)
            for i, data in enumerate(problem.train)
        ]
        self.setting = Setting(captured.axes, tuple(plan), len(self.participants), run.seed)
        self.overlap = State(run.overlap if self.method.overlap else 0.0)
        self.learner = Learner(
            schedule=self._schedule(),
            submodels=SubModels(captured, problem.example, device, self.method.scale_power),
            objective=problem.objective,
            config=run.train,
            rounds=run.rounds,
            seed=run.seed,
            contrast=run.contrast if self.method.contrast and run.contrast.weight else None,
            head=head,
        )
        self.carried = Carried()
        self.attendance = attendance_of(run, exchange=self.method.evaluated != "own")
        values, trained = values_of(self.model), frozenset(parameters)
        self.store: MemoryStore
        if self.method.evaluated == "own":
            self.store = OwnStore(values, captured.axes, trained)
        else:
            self.store = MemoryStore(values, captured.axes, trained, measure=run.adapt.measures)
        self.coverage = Coverage(captured.axes, parameters, plan)
        self.scribe = Scribe(self.learner, self.participants, exchange=self.method.evaluated != "own")
        self._evaluation: Evaluation | None = None
        examples = [participant.examples for participant in self.participants]
        self.journal = Journal(out, dict(settings or dataclasses.asdict(run)), captured.axes, examples)

    def run(
        self, *, resume: bool = False, watch: Callable[[records.Round], None] = lambda record: None
    ) -> Result:
        """Play all rounds (with ``resume``, those that are left) and return what came of it.

        watch: called with every record. Ctrl-C ends the run behind a participant, saves the last finished
        round and raises KeyboardInterrupt; pressed again, it ends at once, with the last checkpoint.
        """
        with torch_threads(self.config.threads):
            done = self._resume() if resume else 0
            with self.journal.writing(self._header(), done if resume else None):
                if not resume:
                    self._save(0)  # from here on the run can be resumed, whatever happens
                history = self._rounds(done, watch)
            evaluation = self._evaluation or self.evaluate()
        return Result(self.model.eval(), evaluation, self.coverage.summary(), history)

    def _rounds(self, done: int, watch: Callable[[records.Round], None]) -> list[records.Round]:
        history: list[records.Round] = []
        with deferred_interrupt() as check:
            for round in range(done, self.config.rounds):
                history.append(self._round(round, check))
                done = round + 1
                self.journal.round(history[-1])
                if done % self.config.checkpoint_every == 0 or done == self.config.rounds:
                    self._save(done)
                watch(history[-1])
        return history

    def evaluate(self) -> Evaluation:
        """Score what the method trains on the test set, with batch-norm statistics estimated anew."""
        if self.method.evaluated == "own":
            return mean([self._score_small(p, [p.data]) for p in self.participants])
        if self.method.evaluated == "small":
            return self._score_small(self.participants[0], self.problem.train)
        return self._score(self.model, self.problem.train)

    def _round(self, round: int, check: Callable[[], None]) -> records.Round:
        start = time.perf_counter()
        config = self.config
        step = server_step(config.server_step, round, config.rounds)
        try:
            played = play(
                round,
                self.attendance.present(round, self.participants),
                self.learner,
                self.store,
                step,
                self.carried,
                check,
                lambda participant: self.attendance.fate(round, participant),
            )
        except (Stopped, UserError):
            self._save(round)  # nothing of this round is in the store
            raise
        self.carried = played.carried
        overlap = self.overlap.rate
        self._adapt(round, played.shift)
        for windows in played.merged:
            self.coverage.add(windows)
        due = (round + 1) % config.evaluate_every == 0 or round + 1 == config.rounds
        self._evaluation = self.evaluate() if due else None
        return self.scribe.round(
            round,
            played.trained,
            coverage=self.coverage.summary().share,
            overlap=overlap,
            shift=played.shift,
            evaluation=self._evaluation,
            seconds=time.perf_counter() - start,
        )

    def _schedule(self) -> Schedule:
        """The windows at the overlap rate that holds."""
        return self.method.schedule(
            dataclasses.replace(self.setting, overlap=self.overlap.rate, since=self.overlap.since)
        )

    def _adapt(self, round: int, shift: float | None) -> None:
        """Let the overlap rate follow what is known after a round."""
        schedule = self.learner.schedule
        if self.method.overlap and isinstance(schedule, DoubleShift):
            epoch = max(schedule.epoch(p.widths) for p in self.participants)
            rule = self.config.adapt.rule(self.config.overlap, self.config.rounds)
            self._set_overlap(advance(self.overlap, Signal(round, epoch, shift), rule))

    def _set_overlap(self, overlap: State) -> None:
        self.overlap = overlap
        self.learner = dataclasses.replace(self.learner, schedule=self._schedule())

    def _score_small(self, participant: Participant, data: Sequence[Dataset[Any]]) -> Evaluation:
        windows = self.learner.windows(0, participant)
        values = self.store.pull(participant.number, windows)
        return self._score(self.learner.submodels.load(windows, values), data)

    def _score(self, module: nn.Module, data: Sequence[Dataset[Any]]) -> Evaluation:
        self._estimate(module, data)
        return evaluate(module, self.problem.test, self.problem.objective)

    def _estimate(self, module: nn.Module, data: Sequence[Dataset[Any]]) -> None:
        estimate_batch_norm(module, data, derive(self.config.seed, "batch norm"))

    def _header(self) -> records.Header:
        return {
            "kind": "header",
            "format": records.FORMAT,
            "method": self.config.method,
            "seed": self.config.seed,
            "config": self.journal.settings,
            **run_facts(),
            "metric": self.problem.objective.metric,
            **self.scribe.facts(self.problem.name, self.journal.axes),
        }

    def _save(self, done: int) -> None:
        if done and self.journal.keeps and self.method.evaluated == "full":
            self._estimate(self.model, self.problem.train)  # whoever loads the checkpoint can use the model
        tables = {f"coverage/{i}": table for i, table in enumerate(self.coverage.state())}
        model = {f"model/{name}": tensor for name, tensor in self.store.state().items()}
        overlap = torch.tensor(dataclasses.astuple(self.overlap), dtype=torch.float64)
        self.journal.save(done, {**model, **tables, **self.carried.state(), "overlap": overlap})

    def _resume(self) -> int:
        free = ["rounds"] if self._rounds_may_change() else []
        done, tensors = self.journal.load(free)
        if done > self.config.rounds:
            raise UserError(
                f"expected at least the {done} rounds that the run has done, got {self.config.rounds}; "
                "resume with more rounds or use another directory"
            )
        self.store.restore({name[6:]: t for name, t in tensors.items() if name.startswith("model/")})
        self.carried = Carried.restored(tensors, next(self.model.parameters()).device)
        rate, since, total, measured = tensors["overlap"].tolist()
        self._set_overlap(State(rate, int(since), total, int(measured)))
        self.coverage.restore([tensors[f"coverage/{i}"] for i in range(len(self.coverage.state()))])
        return done

    def _rounds_may_change(self) -> bool:
        return (
            self.config.server_step == self.config.train.lr_schedule == "constant"
            and self.config.adapt.kind in ("constant", "feedback")
        )


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run the body with so many threads per operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_participants(datasets: Sequence[Dataset[Any]]) -> None:
    """Raise UserError unless there are participants and each has data."""
    if not datasets:
        raise UserError("expected at least one participant, got no training data")
    for number, data in enumerate(datasets):
        if not hasattr(data, "__len__"):
            raise UserError(
                f"expected datasets with a length and an index, got {type(data).__name__} for participant "
                f"{number}; read its examples into such a dataset first"
            )
        if not len(data):
            raise UserError(
                f"expected data for every participant, got none for participant {number} of "
                f"{len(datasets)}; lower the number of participants or split more evenly"
            )


def device_of(name: str) -> torch.device:
    """The device of a name; raises UserError where it is not at hand."""
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"expected device 'cpu', as no GPU is at hand, got {name!r}")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"expected a device such as 'cpu' or 'cuda:0', got {name!r}") from None


def head_of(captured: Capture, objective: Objective) -> dict[str, int]:
    """Parameters with a dimension of classes; raises UserError where there are none."""
    head = captured.head() if objective.classes else {}
    if not head:
        why = (
            "no parameter is of the model's outputs alone" if objective.classes else "the loss is of its own"
        )
        raise UserError(f"expected a model with classes for mask_unseen, but {why}; leave mask_unseen off")
    return head


def labels_of(data: Dataset[Any]) -> Units:
    """The labels in a dataset."""
    seen: set[int] = set()
    for index in torch.split(torch.arange(len(data)), 256):  # type: ignore[arg-type]
        seen.update(fetch(data, index, None)[1].flatten().tolist())
    return runs_of(sorted(seen))


def attendance_of(run: Run, *, exchange: bool) -> Attendance:
    """Who takes part; without exchange nothing gets lost."""
    if run.loss_rate + run.late_rate > 1:
        raise UserError(
            f"expected loss_rate and late_rate of 1 together at most, got {run.loss_rate} and {run.late_rate}"
        )
    return Attendance(run.seed, run.sample, *((run.loss_rate, run.late_rate) if exchange else (0.0, 0.0)))


def plan_of(axes: AxisMap, parameters: Iterable[str], method: Method, run: Run) -> dict[str, int]:
    """The width plan that the settings ask for."""
    if method.cut is None:
        return {}
    if (run.width is None) == (run.share is None):
        got = "neither" if run.width is None else f"width {run.width} and share {run.share}"
        raise UserError(f"expected either a width or a share of the parameters, got {got}")
    if run.width is not None:
        return widths.at_width(axes, run.width, method.cut)
    assert run.share is not None
    return widths.for_share(axes, parameters, run.share, method.cut)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors, without gradients: changing them changes the model."""
    return {name: tensor.detach() for name, tensor in tensors_of(model).items()}


def mean(scores: list[Evaluation]) -> Evaluation:
    """Mean of several evaluations on one test set."""
    accuracies = [s.accuracy for s in scores if s.accuracy is not None]
    return Evaluation(
        loss=sum(s.loss for s in scores) / len(scores),
        accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        examples=scores[0].examples,
    )
