"""The server side: sends everybody its windows' values, merges what comes back; it never sees data, and never
runs the model."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from msfusion import records
from msfusion.core.axes import Selection, Units
from msfusion.core.bound import too_large
from msfusion.core.merge import Contribution
from msfusion.errors import Diverged, UserError
from msfusion.flower.agreed import agree
from msfusion.flower.exchange import Job, ask, logger
from msfusion.flower.home import Home, check_out
from msfusion.flower.roll import Member, Roll
from msfusion.flower.task import Task, settings_of
from msfusion.flower.wire import Answer, Order, shown, unpacked
from msfusion.learn.capacity import Capacity
from msfusion.learn.learner import Learner, check_somebody_trains
from msfusion.learn.round import Trained
from msfusion.runtimes.scribe import Described, Scribe
from msfusion.runtimes.setup import Setup
from msfusion.runtimes.sole import sole


def server_app(task: Task) -> ServerApp:
    """The app that a SuperLink runs. Started again with the same run directory, it goes on."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            out = Path(settings_of(context.run_config).out).absolute()
            check_out(out)
            with sole(out, "ServerApp", "stop that run (flwr stop), or set out to another directory"):
                Hub(task, grid, context.run_config).run()
        except UserError as error:  # Flower shows where it was raised, and that tells the user nothing
            raise error.with_traceback(None) from None

    return app


@dataclass
class Cohort:
    """Who is to train in a round, and who did not finish it.

    learner: what all agree on in this round.
    members: all that are connected.
    windows: of those that are asked.
    dropped: who did not finish, and why, as it turns out.
    """

    round: int
    learner: Learner
    members: Mapping[int, Member]
    windows: dict[int, Selection] = field(default_factory=dict)
    dropped: list[records.Dropped] = field(default_factory=list)

    def drop(self, number: int, reason: str) -> None:
        """Go on without a participant."""
        self.dropped.append({"participant": number, "reason": reason})

    def left(self, merged: Collection[int]) -> list[records.Dropped]:
        """Who did not finish so far, ascending; without those that are merged all the same, whose second
        SuperNode or second answer was left out."""
        left = (one for one in self.dropped if one["participant"] not in merged)
        return sorted(left, key=lambda one: one["participant"])


class Hub:
    """A run of one method, seen from the server side."""

    def __init__(self, task: Task, grid: Grid, run_config: Mapping[str, object]) -> None:
        self.task, self.grid, self._run_config = task, grid, run_config
        agreed = agree(task, run_config, torch.device("cpu"))
        self.settings, self.setup, self._key = agreed.settings, agreed.setup, agreed.key
        self.home = Home(task, agreed)
        self._settled = self.home.done > 0
        if self._settled:
            self.setup = self._setup_for(self.home.capacities)
        waiting, meaning = self.settings.waiting, self.home.meaning
        self.roll = Roll(grid, self.settings.participants, waiting, self._check_capacity, meaning)
        self._inbox = self.home.out / "answers"
        self._failing: dict[int, str] = {}  # who answered with an error since somebody trained

    def run(self) -> None:
        """Play the rounds that are left."""
        logger.info("run directory: %s, %d rounds done", self.home.out, self.home.done)
        members = self.roll.first()
        self._settle(members)
        with self.home.writing(self._header(self._scribe(members))):
            while self.home.done < self.settings.rounds:
                record = self._round(self.home.done)
                logger.info(_line(record, self.settings.rounds))

    def _settle(self, members: Mapping[int, Member]) -> None:
        """Who can afford what: as stated, else as the settings say; fixed for the run when it begins."""
        capacities = self.home.capacities
        if not self.home.done and self.setup.method.cut:
            usual = self.settings.capacities()
            stated = {number: member.capacity for number, member in members.items()}
            capacities = tuple(
                stated.get(n) or usual[n % len(usual)] for n in range(self.settings.participants)
            )
        self.setup = self._setup_for(capacities)
        if not self.home.done and len(members) == self.settings.participants:
            everyone = [self.setup.known(number, member.examples) for number, member in members.items()]
            check_somebody_trains(self.setup.learner(self.home.overlap), everyone)
        self.home.begin(self.setup, capacities, self.roll.meaning)
        self._settled = True

    def _setup_for(self, capacities: tuple[Capacity, ...]) -> Setup:
        return agree(self.task, self._run_config, torch.device("cpu"), capacities).setup

    def _check_capacity(self, number: int, capacity: Capacity) -> None:
        """UserError for a participant that can afford nothing, or less than what is settled for it."""
        self.setup.plan_of(capacity)
        if not self._settled or not self.setup.method.cut:
            return
        settled = self.home.capacities[number]
        if not capacity.covers(settled) and not self.setup.affords(capacity, self.setup.widths(number)):
            raise UserError(
                f"expected a participant that can afford {settled}, as was settled for it when the run began,"
                f" got {capacity}: state that in --node-config if it can, or begin a run in another directory"
                " while it is connected"
            )

    def _scribe(self, members: Mapping[int, Member]) -> Scribe:
        there = [self.setup.known(number, member.examples) for number, member in members.items()]
        return Scribe(self.setup.learner(self.home.overlap), there, self.setup.plans, exchange=True)

    def _round(self, round: int) -> records.Round:
        start = time.perf_counter()
        cohort = self._cohort(round)
        answers, silent = self._answers(cohort)
        changes = self._changes(cohort, answers)
        self._check_somebody_trained(cohort, changes, silent)
        record = self._merged(cohort, answers, changes, start)
        self._clear_inbox()
        return record

    def _cohort(self, round: int) -> Cohort:
        """Wait for a quorum; who of those that are there is to train what."""
        learner = self.setup.learner(self.home.overlap)
        members = self.roll.present()
        called = self.setup.attendance.present(round, range(self.settings.participants))
        cohort = Cohort(round, learner, members, dropped=self.roll.doubles())
        for n in called:
            if n not in members:
                cohort.dropped.append(self.roll.absent(n))
                continue
            participant = self.setup.known(n, members[n].examples)
            if reason := learner.left_out(participant):
                cohort.drop(n, reason)
            else:
                cohort.windows[n] = learner.windows(round, participant)
        return cohort

    def _merged(
        self, cohort: Cohort, answers: Mapping[int, Answer], changes: Mapping[int, float], start: float
    ) -> records.Round:
        """Merge the answers whose changes are known, and record the round; without those that weigh the most
        where merged values would not be finite.

        start: when the round began, on the clock time.perf_counter.
        """
        scribe, overlap = self._scribe(cohort.members), self.home.overlap.rate
        weights = {n: answers[n].examples * change for n, change in changes.items()}
        while True:
            trained = self._push(cohort, {n: answers[n] for n in weights})
            left = cohort.left(weights)
            describe = partial(
                scribe.round, cohort.round, trained, overlap=overlap, evaluation=None, dropped=left
            )
            try:
                return self.home.commit([one.windows for one in trained], describe, start)
            except Diverged as error:
                heaviest = max(weights, key=lambda n: weights[n])
                cohort.drop(heaviest, f"{error}, and this change weighed the most")
                del weights[heaviest]

    def _clear_inbox(self) -> None:
        """No answer of a single participant is kept longer than it takes to merge it."""
        for left in self._inbox.glob("[0-9]*.safetensors"):
            left.unlink()

    def _check_somebody_trained(
        self, cohort: Cohort, changes: Mapping[int, float], silent: Collection[int]
    ) -> None:
        """UserError where nobody trained as everybody answered with an error: the app is wrong, and no round
        is over. Fewer than a quorum may be wrong alone; where participants are sampled, or do not answer,
        errors of several rounds count together."""
        if changes:
            self._failing.clear()
        if changes or silent:
            return
        self._failing |= {
            one["participant"]: one["reason"]
            for one in cohort.dropped
            if one["participant"] in cohort.windows
        }
        if len(self._failing) >= self.settings.waiting.least(self.settings.participants):
            first = min(self._failing)
            raise UserError(
                f"expected somebody to train, but all who were asked answered with an error, such as "
                f"participant {first}: {self._failing[first]}; mend that, and the same command goes on "
                f"with round {self.home.done}"
            )

    def _answers(self, cohort: Cohort) -> tuple[dict[int, Answer], set[int]]:
        """Ask for the round; what comes back waits on disk until all of it can be merged in order.

        Returns the answers, and who did not answer."""
        self._inbox.mkdir(exist_ok=True)
        self._clear_inbox()
        store, home = self.home.store, self.home
        order = Order(home.run, self._key, cohort.round, home.overlap, home.capacities)
        most: dict[int, int] = {}  # bytes: what was sent holds all that is trained

        def content(n: int) -> RecordDict:
            record = order.record(store.pull(n, cohort.windows[n]))
            most[n] = len(record.array_records["model"]["values"].data)
            return record

        jobs = {n: Job(cohort.members[n].connection, partial(content, n)) for n in cohort.windows}
        deadline, name = self.settings.waiting.deadline, f"{cohort.round + 1}"
        answers: dict[int, Answer] = {}
        silent = set()
        for n, message in ask(self.grid, MessageType.TRAIN, jobs, deadline, name):
            if isinstance(message, str):
                silent.add(n)
                cohort.drop(n, shown(message))
                continue
            try:
                answers[n] = self._taken_in(n, message, most[n])
            except UserError as error:
                cohort.drop(n, shown(str(error)))
                if n in answers:
                    logger.warning("a second answer of participant %d: %s", n, shown(str(error)))
        return answers, silent

    def _taken_in(self, number: int, message: Message, most: int) -> Answer:
        """An answer, whose values now lie on disk; UserError where it is none, or a second one.

        most: bytes that its values may have.
        """
        answer, values = _opened(message)
        if len(values) > most:
            raise UserError(f"expected at most the {most} bytes that were sent, got {len(values)} back")
        if self._file(number).exists():
            raise UserError("answered twice, and the first answer counts")
        self._file(number).write_bytes(values)
        return answer

    def _changes(self, cohort: Cohort, answers: Mapping[int, Answer]) -> dict[int, float]:
        """How far each answer moves the values of its windows, ascending by participant; without those that
        are not to be merged."""
        changes, reasons = {}, {}
        for n, answer in sorted(answers.items()):
            try:
                changes[n] = self.home.store.change(self._contribution(cohort, n, answer))
            except UserError as error:
                reasons[n] = shown(str(error))
        reasons |= too_large(changes, self.settings.norm_bound)
        for n, reason in reasons.items():
            cohort.drop(n, reason)
        return {n: change for n, change in changes.items() if n not in reasons}

    def _push(self, cohort: Cohort, answers: Mapping[int, Answer]) -> list[Trained]:
        """Push ascending by participant: sums of the same numbers in the same order are equal to the bit."""
        for n, answer in answers.items():
            self.home.store.push(self._contribution(cohort, n, answer))
        return [
            Trained(self.setup.known(n, answer.examples), cohort.windows[n], answer.loss, answer.first)
            for n, answer in answers.items()
        ]

    def _contribution(self, cohort: Cohort, number: int, answer: Answer) -> Contribution:
        """What a participant hands over, from its answer on disk; UserError where that is none."""
        values = self._checked(unpacked(self._file(number).read_bytes()))
        self._check_seen(answer.seen)
        participant = self.setup.known(number, answer.examples, answer.seen)
        return cohort.learner.contribution(participant, cohort.windows[number], values)

    def _checked(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values in the model's order; checks what the merge leaves open: that nothing is missing, and
        types."""
        names = self.setup.captured.trained
        if lacking := sorted(set(names) - values.keys()):
            raise UserError(
                f"expected all trained parameters of the sub-model, got none named {lacking[0]!r}"
            )
        if unknown := sorted(values.keys() - set(names)):
            raise UserError(f"expected trained parameters of the model, got another one, {unknown[0]!r}")
        full = self.home.store.state()
        for name in names:
            if values[name].dtype != full[name].dtype:
                raise UserError(f"expected {name} of type {full[name].dtype}, got {values[name].dtype}")
        return {name: values[name] for name in names}

    def _check_seen(self, seen: Units | None) -> None:
        """UserError where rows of the head count by labels seen, and these are no such labels."""
        if not self.setup.head:
            return
        classes = self.setup.classes
        places = [place for run in seen or () for place in run]
        if not places or places[0] < 0 or places[-1] > classes or places != sorted(set(places)):
            raise UserError(f"expected the labels seen, as runs from 0 to {classes}, got {seen}")

    def _file(self, number: int) -> Path:
        return self._inbox / f"{number}.safetensors"

    def _header(self, scribe: Scribe) -> records.Header:
        metric = self.task.objective.metric
        return scribe.header(self.settings, Described(self.home.journal.settings, self.task.name, metric))


def _opened(message: Message) -> tuple[Answer, bytes]:
    """What a participant answered; UserError where that is not what it was asked."""
    if message.has_error():
        raise UserError(f"error {message.error.code}: {message.error.reason}")
    return Answer.read(message.content)


def _line(record: records.Round, rounds: int) -> str:
    """What the log says of a round, which counts from 0 as the records do, and as reasons in it."""
    number, loss = record["round"], record["train_loss"]
    parts = [
        f"round {number}, {number + 1} of {rounds} done: {len(record['participants'])} participants",
        "nobody trained" if loss is None else f"loss {loss:.4f}",
        f"coverage {record['coverage']:.0%}",
        f"{record['seconds']:.1f} s",
        *(f"without {one['participant']} ({one['reason']})" for one in record["dropped"]),
    ]
    return ", ".join(parts)
