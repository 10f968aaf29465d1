"""Participants of a round train in worker processes, each on a core of its own.

Participants of a round do not depend on each other, so they can train at the same time; what they hand over
is merged in their order, and a run ends with the same bits whatever the number of workers. Workers are forked
once per run: they have inherited the data and the modules, and only a few numbers per participant go through
pipes, as JSON. Values travel in shared memory, through slots: this process pulls a sub-model into a slot, a
worker trains it and writes it back, this process merges it from there. Threads would be simpler, but the
generators that dropout draws from are the process's, and so are the modules.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from msfusion.core.axes import Selection
from msfusion.errors import UserError
from msfusion.learn.learner import Learner, Participant, Ready
from msfusion.learn.memory import Memory
from msfusion.learn.round import One
from msfusion.learn.store import Store
from msfusion.learn.submodels import Plan, plan_of, widths_of
from msfusion.runtimes.jobs import Job, Outcome
from msfusion.runtimes.shared import Shared, size_of

_SLOTS = 2  # per worker: one that trains, and one that waits for its turn to be trained or merged


class CannotFork(Exception):
    """Why forked processes cannot train."""


@dataclass(frozen=True)
class _Slot:
    """Room for one participant: for the values of its sub-model, and for what it remembers."""

    values: Shared
    memory: Shared


@dataclass(frozen=True)
class _Worker:
    process: Any
    pipe: "Connection[Any, Any]"


class Workers:
    """Trains participants in ``number`` processes, which live until ``close``.

    participants: all of the run.
    learner: a later one may move the windows, and nothing else.
    Raises CannotFork where a forked process cannot train.
    """

    def __init__(self, number: int, participants: Sequence[Participant], learner: Learner) -> None:
        self._participants = participants
        self._learner = learner
        self._like: dict[Plan, dict[str, Tensor]] = {}  # a memory's tensors
        self._views: dict[tuple[int, Plan], dict[str, Tensor]] = {}
        plans = distinct(participants)
        values = max(size_of(learner.submodels.shapes(plan)) for plan in plans)
        memory = max(size_of(learner.remembered(plan)) for plan in plans)
        self._slots = [_Slot(Shared(values), Shared(memory)) for _ in range(_SLOTS * number)]
        self._place = {participant.number: i for i, participant in enumerate(participants)}
        self._workers: list[_Worker] = []
        try:
            for core in range(number):
                self._workers.append(self._forked(core))
            for worker in self._workers:
                if problem := self._answer(worker):
                    raise CannotFork(problem.decode())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers, whatever they do."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers = []

    def train(
        self,
        round: int,
        participants: Sequence[Participant],
        learner: Learner,
        store: Store,
        previous: Mapping[int, Memory],
    ) -> Generator[One]:
        """What participants make of the values in the store, in their order; a contribution is lent until the
        next is asked for. Errors are raised in the turn of the participant that made them."""
        todo = deque(enumerate(Ready(one, learner.windows(round, one)) for one in participants))
        waiting: deque[tuple[int, Job]] = deque()  # their values are in their slots
        free, idle = list(range(len(self._slots))), list(self._workers)
        busy: dict[Any, tuple[_Worker, int, Job]] = {}
        done: dict[int, tuple[Job, Outcome]] = {}
        try:
            for turn, participant in enumerate(participants):
                while True:
                    while todo and free:
                        place, one = todo.popleft()
                        waiting.append((place, self._filled(free.pop(), round, one, store, previous)))
                    while waiting and idle:
                        worker, (place, job) = idle.pop(), waiting.popleft()
                        with _alive(worker):
                            worker.pipe.send_bytes(job.to_bytes())
                        busy[worker.pipe] = worker, place, job
                    if turn in done:
                        break
                    for pipe in wait(list(busy)):
                        worker, place, job = busy.pop(pipe)
                        done[place] = job, Outcome.from_bytes(self._answer(worker))
                        idle.append(worker)
                job, outcome = done.pop(turn)
                loss = outcome.result()
                contribution = learner.contribution(participant, job.windows, self._trained_values(job))
                yield Ready(participant, job.windows), contribution, loss, self._memory(job)
                free.append(job.slot)
        finally:
            if busy:  # left in the middle of a round: what they are at is of no use to anybody
                self.close()

    def _filled(self, slot: int, round: int, one: Ready, store: Store, previous: Mapping[int, Memory]) -> Job:
        """Put into the slot what the participant starts from."""
        number = one.participant.number
        store.pull(number, one.windows, self._values(slot, one.windows))
        before = previous.get(number) if self._learner.remembers else None
        if before is not None:
            _copy(before.packed(), self._remembered(slot, before.windows))
        windows = before.windows if before is not None else None
        return Job(round, self._place[number], one.windows, slot, windows)

    def _values(self, slot: int, windows: Selection) -> dict[str, Tensor]:
        """The tensors of a sub-model in a slot."""
        widths = widths_of(windows)
        key = (slot, plan_of(widths))
        if key not in self._views:
            self._views[key] = self._slots[slot].values.tensors(self._learner.submodels.shapes(widths))
        return self._views[key]

    def _trained_values(self, job: Job) -> dict[str, Tensor]:
        tensors = self._values(job.slot, job.windows)
        return {name: tensors[name] for name in self._learner.submodels.trained(widths_of(job.windows))}

    def _remembered(self, slot: int, windows: Selection) -> dict[str, Tensor]:
        """The tensors of a memory in a slot."""
        plan = plan_of(widths_of(windows))
        if plan not in self._like:
            self._like[plan] = self._learner.remembered(dict(plan))
        return self._slots[slot].memory.tensors(self._like[plan])

    def _memory(self, job: Job) -> Memory | None:
        """What a worker has left in the slot for its participant to remember."""
        if not self._learner.remembers:
            return None
        tensors = self._remembered(job.slot, job.windows)
        return Memory.unpacked(job.windows, {name: tensor.clone() for name, tensor in tensors.items()})

    def _answer(self, worker: _Worker) -> bytes:
        with _alive(worker):
            return worker.pipe.recv_bytes()

    # --- in a worker

    def _forked(self, core: int) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        others = [*(worker.pipe for worker in self._workers), ours]
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._serve, args=(theirs, others, core), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _serve(
        self, pipe: "Connection[Any, Any]", others: Sequence["Connection[Any, Any]"], core: int
    ) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
        for other in others:  # or this process would keep the pipes of a dead parent open
            other.close()
        _pin(core)
        pipe.send_bytes(_problem().encode())
        with suppress(EOFError, ConnectionError):
            while True:
                pipe.send_bytes(self._outcome(Job.from_bytes(pipe.recv_bytes())).to_bytes())

    def _outcome(self, job: Job) -> Outcome:
        try:
            return Outcome(self._trained(job))
        except Exception as error:
            return Outcome.of(error)

    def _trained(self, job: Job) -> float:
        participant = self._participants[job.participant]
        before = None
        if job.previous is not None:
            before = Memory.unpacked(job.previous, self._remembered(job.slot, job.previous))
        values = self._values(job.slot, job.windows)
        contribution, loss, memory = self._learner.train(
            job.round, participant, job.windows, values, before, lend=True
        )
        for name, value in contribution.values.items():
            values[name].copy_(value)
        if memory is not None:
            _copy(memory.packed(), self._remembered(job.slot, job.windows))
        return loss


def _copy(source: Mapping[str, Tensor], room: Mapping[str, Tensor]) -> None:
    """Into the room, which has place for all; what is not there is zero, as in an optimizer that has not
    moved."""
    assert source.keys() <= room.keys()
    for name, tensor in room.items():
        tensor.copy_(source[name]) if name in source else tensor.zero_()


@contextmanager
def _alive(worker: _Worker) -> Iterator[None]:
    """UserError where talking to a worker shows that it is dead."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        raise UserError(
            f"expected a worker process to live as long as the run, it ended with {how}, as happens "
            "where memory runs out; set workers to 1, or lower train.batch or the participants' share"
        ) from None


def distinct(participants: Sequence[Participant]) -> list[Mapping[str, int]]:
    """The width plans that participants have, each once."""
    return list({plan_of(one.widths): one.widths for one in participants}.values())


def _problem() -> str:
    """Why this forked process cannot train; empty where it can."""
    try:
        torch.ones((), requires_grad=True).mul(2.0).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)]})
