"""All participants on this machine: this process pulls and merges for them; it, or forks of it, train."""

import dataclasses
import gc
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from msfusion import records
from msfusion.capture import Capture, capture
from msfusion.capture.graph import named_tensors
from msfusion.core.coverage import Summary
from msfusion.core.momentum import Momentum
from msfusion.core.overlap import State
from msfusion.data import resident
from msfusion.data.digest import contents, digest
from msfusion.errors import UserError
from msfusion.learn.carried import Carried, below
from msfusion.learn.evaluation import Evaluation
from msfusion.learn.learner import Participant, check_somebody_trains
from msfusion.learn.methods import check_makes_full
from msfusion.learn.objective import no_gradients_in
from msfusion.learn.round import in_turn, play
from msfusion.learn.steps import server_step
from msfusion.learn.storage import own_memory_
from msfusion.learn.store import MemoryStore, OwnStore
from msfusion.learn.submodels import stored, transient
from msfusion.runtimes import checkpoint
from msfusion.runtimes.cores import Crew, crew
from msfusion.runtimes.interrupt import Stopped, deferred_interrupt
from msfusion.runtimes.journal import Journal
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.scoring import Scores, check_finite
from msfusion.runtimes.scribe import Described, Scribe
from msfusion.runtimes.setup import Setup, device_of


@dataclass(frozen=True)
class Result:
    """What came of a run.

    model: the full model, in evaluation mode; its tensors are those that were trained.
    method: its name.
    evaluation: the last evaluation, of the full model unless the method says otherwise.
    coverage: share of the parameters that were in a participant's sub-model, and how evenly.
    history: the record of every round of this process.
    """

    model: nn.Module
    method: str
    evaluation: Evaluation
    coverage: Summary
    history: list[records.Round]

    def save(self, path: str | Path) -> None:
        """Write the full model's parameters and persistent buffers as safetensors, tied tensors once: what
        ``safetensors.torch.load_model`` loads. Raises UserError for methods that train no full model."""
        check_makes_full(self.method)
        checkpoint.write(Path(path), stored(self.model), {"format": "pt"})


class Simulation:
    """A run of one method on one problem.

    run: the settings, which records and checkpoints state as the configuration.
    captured: the capture of ``problem.model``, if it is at hand already.
    """

    def __init__(
        self,
        problem: Problem,
        run: Run,
        *,
        out: Path | None = None,
        captured: Capture | None = None,
    ) -> None:
        self.problem, self.config = problem, run
        _check_directory(out)
        _check_values(problem.model)
        device = device_of(run.device)
        if device.type != "cpu":
            *train, test = resident([*problem.train, problem.test], device)
            self.problem = problem = dataclasses.replace(problem, train=train, test=test)
        self.model = problem.model.to(device)
        example = tuple(t.to(device) for t in problem.example)
        captured = captured or capture(self.model, example, logits_alone=problem.objective.reads_logits)
        own_memory_(self.model)
        self.setup = setup = Setup(
            captured,
            problem.example,
            problem.objective,
            run,
            participants=len(problem.train),
            device=device,
        )
        self.participants = [setup.participant(i, data) for i, data in enumerate(problem.train)]
        self._set_overlap(setup.first_overlap())
        check_somebody_trains(self.learner, self.participants)
        self.carried = Carried()
        self.model.train()  # values are pulled as in training: a module may merge weights in eval mode
        values, trained = values_of(self.model), frozenset(captured.trained)
        self.momentum = Momentum(setup.decay) if setup.decay else None
        self.store: MemoryStore
        if setup.exchange:
            if setup.start:
                setup.start(values)
            self.store = MemoryStore(
                values,
                captured.axes,
                trained,
                measure=run.adapt.measures,
                twins=setup.twins,
                momentum=self.momentum,
            )
        else:
            self.store = OwnStore(values, captured.axes, trained)
        self.coverage = setup.coverage()
        self.scores = Scores(problem, setup.method.evaluated, run.seed)
        self.scribe = Scribe(self.learner, self.participants, setup.plans, exchange=setup.exchange)
        self._evaluation: Evaluation | None = None
        self._crew = Crew(in_turn)
        examples = [participant.examples for participant in self.participants]
        said, defaults = dataclasses.asdict(run), dataclasses.asdict(type(run)())
        known = digest([*problem.train, problem.test]) if out else None
        self.journal = Journal(out, said, defaults, captured.axes, examples, transient(self.model), known)

    def run(
        self, *, resume: bool = False, watch: Callable[[records.Round], None] = lambda record: None
    ) -> Result:
        """Play all rounds (with ``resume``, those that are left) and return what came of it.

        watch: called with every record. Ctrl-C ends the run behind a participant, saves the last finished
        round and raises KeyboardInterrupt; pressed again, it ends at once, with the last checkpoint. A loss
        that is not finite ends it with UserError. Whatever error ends it, the last round that was merged is
        saved.
        """
        with torch_threads(self.config.threads), old_objects_left_alone():
            done = self._resume() if resume else 0
            began = done if resume else None
            with self.journal.alone(), self._trainers(), self.journal.writing(self._header(), began):
                if not resume:
                    self._save(0)  # from here on the run can be resumed, whatever happens
                history = self._rounds(done, watch)
            evaluation = self._evaluation or self.evaluate()
            if self.setup.method.evaluated == "widest":  # then no score was of the full model
                self.scores.estimate(self.model, self.problem.train)
            check_finite(evaluation, self.config.rounds)
        return Result(self.model.eval(), self.config.method, evaluation, self.coverage.summary(), history)

    def _rounds(self, done: int, watch: Callable[[records.Round], None]) -> list[records.Round]:
        history: list[records.Round] = []
        with deferred_interrupt() as check:
            for round in range(done, self.config.rounds):
                history.append(self._round(round, check))
                done = round + 1
                self.journal.round(history[-1])
                score = self._evaluation
                diverged = score is not None and not math.isfinite(score.loss)
                if done % self.config.checkpoint_every == 0 or done == self.config.rounds or diverged:
                    self._save(done)
                with self._rescued(done):
                    watch(history[-1])
                if score is not None:
                    check_finite(score, done)
        return history

    @contextmanager
    def _trainers(self) -> Iterator[None]:
        with (
            no_gradients_in(self.model),  # before workers are forked
            crew(self.config, self.setup, self.participants, self.learner) as self._crew,
        ):
            yield

    def evaluate(self) -> Evaluation:
        """Score what the method trains on the test set."""
        return self.scores.evaluate(self.learner, self.participants, self.store)

    def _round(self, round: int, check: Callable[[], None]) -> records.Round:
        start = time.perf_counter()
        config = self.config
        step = server_step(config.server_step, round, config.rounds)
        called = self.setup.attendance.present(round, self.participants)
        dropped = self._left_out(called)
        left_out = {one["participant"] for one in dropped}
        with self._rescued(round):
            played = play(
                round,
                [one for one in called if one.number not in left_out],
                self.learner,
                self.store,
                step,
                self.carried,
                check,
                lambda participant: self.setup.attendance.fate(round, participant),
                self._crew.train,
            )
        self.carried = played.carried
        overlap = self.overlap.rate
        self._set_overlap(self.setup.next_overlap(self.overlap, round, played.shift))
        for windows in played.merged:
            self.coverage.add(windows)
        recorded = partial(
            self.scribe.round,
            round,
            played.trained,
            coverage=self.coverage.share(),
            overlap=overlap,
            shift=played.shift,
            one_by_one=played.one_by_one,
            dropped=dropped,
        )
        due = (round + 1) % config.evaluate_every == 0 or round + 1 == config.rounds
        with self._rescued(round + 1):
            try:
                self._evaluation = self.evaluate() if due else None
            except Exception:
                self.journal.round(recorded(evaluation=None, seconds=time.perf_counter() - start))
                raise
        return recorded(evaluation=self._evaluation, seconds=time.perf_counter() - start)

    def _left_out(self, participants: Sequence[Participant]) -> list[records.Dropped]:
        reasons = [(one.number, self.learner.left_out(one)) for one in participants]
        return [{"participant": number, "reason": reason} for number, reason in reasons if reason]

    def _set_overlap(self, overlap: State) -> None:
        self.overlap = overlap
        self.learner = self.setup.learner(overlap)

    def _header(self) -> records.Header:
        metric = self.problem.objective.metric
        data = contents([*self.problem.train, self.problem.test]) if self.journal.keeps else None
        described = Described(self.journal.settings, self.problem.name, metric, data)
        return self.scribe.header(self.config, described, str(self._crew))

    @contextmanager
    def _rescued(self, done: int) -> Iterator[None]:
        """Where the body fails, save the state after ``done`` rounds: nothing of the next is in the store
        then, unless its merge failed. What keeps it from being saved is told by a warning: the error that is
        raised is that of the body."""
        try:
            yield
        except Stopped:
            self._save(done)
            raise
        except Exception:
            if not self.store.whole:
                warnings.warn(
                    "the rounds since the last checkpoint are lost, as the merge failed", stacklevel=2
                )
                raise
            with _warning("the checkpoint's batch norm has old statistics, as new ones cannot be estimated"):
                self._estimate(done)
            with _warning("the rounds since the last checkpoint are lost, as they cannot be saved"):
                self._keep(done)
                self.journal.wait()
            raise

    def _save(self, done: int) -> None:
        self._estimate(done)
        self._keep(done)

    def _estimate(self, done: int) -> None:
        """Batch norm's statistics, so that whoever loads the checkpoint can use the model."""
        if done and self.journal.keeps and self.setup.method.makes_full:
            self.scores.estimate(self.model, self.problem.train)

    def _keep(self, done: int) -> None:
        tables = {f"coverage/{i}": table for i, table in enumerate(self.coverage.state())}
        model = {f"model/{name}": tensor for name, tensor in self.store.state().items()}
        overlap = torch.tensor(dataclasses.astuple(self.overlap), dtype=torch.float64)
        velocity = (
            {f"velocity/{name}": v for name, v in self.momentum.state().items()} if self.momentum else {}
        )
        self.journal.save(done, {**model, **tables, **velocity, **self.carried.state(), "overlap": overlap})

    def score_saved(self) -> tuple[int, Evaluation]:
        """Rounds that the model in the run directory has been trained for, and its score on the test set; the
        data and the device may be elsewhere than those of the run."""
        with torch_threads(self.config.threads):
            done = self._restore(["data.path", "device"])
            return done, self.evaluate()

    def _resume(self) -> int:
        done = self._restore(["rounds"] if self.config.rounds_may_change else [])
        if done > self.config.rounds:
            raise UserError(
                f"expected rounds of at least {done}, which the run has done, got {self.config.rounds}; "
                "resume with more rounds or use another directory"
            )
        return done

    def _restore(self, free: Collection[str]) -> int:
        """Take up the checkpoint; ``free`` settings may differ from its own. Returns the rounds done."""
        done, tensors = self.journal.load(free)
        self.store.restore(below("model/", tensors))
        device = next(self.model.parameters()).device
        if self.momentum:
            self.momentum.restore(below("velocity/", tensors), device)
        self.carried = Carried.restored(tensors, device)
        rate, since, total, measured = tensors["overlap"].tolist()
        self._set_overlap(State(rate, int(since), total, int(measured)))
        saved = sum(name.startswith("coverage/") for name in tensors)
        self.coverage.restore([tensors[f"coverage/{i}"] for i in range(saved)])
        return done


def _check_directory(out: Path | None) -> None:
    if out is None:
        return
    if blocks := [place for place in (out, *out.parents) if place.exists() and not place.is_dir()]:
        raise UserError(f"expected a run directory, got the file {blocks[0]}: name another place for it")


def _check_values(model: nn.Module) -> None:
    if torch.is_inference_mode_enabled():
        raise UserError("expected training outside of torch.inference_mode(), got it inside: leave it out")
    if empty := [name for name, tensor in named_tensors(model).items() if tensor.is_meta]:
        raise UserError(
            f"expected a model with values, got {empty[0]} on the meta device: load its values first"
        )


@contextmanager
def _warning(what: str) -> Iterator[None]:
    """An error of the body is a warning."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {error}", stacklevel=3)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run the body with so many threads per operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Run the body while Python's garbage collector passes over all that exists already. A captured model
    leaves objects by the hundred thousand, and to look through them again and again takes a twentieth of the
    rounds of a small one. Nothing changes where somebody has told it so before."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors, without gradients: changing them changes the model."""
    return {name: tensor.detach() for name, tensor in named_tensors(model).items()}
