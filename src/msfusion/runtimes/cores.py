"""How many processes train the participants of a simulation."""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from msfusion.data import Examples
from msfusion.errors import UserError
from msfusion.learn.learner import Learner, Participant
from msfusion.learn.round import Trainer, in_turn
from msfusion.runtimes.run import Run
from msfusion.runtimes.setup import Setup
from msfusion.runtimes.workers import CannotFork, Workers, distinct

_MOST = 64  # workers, unless more are asked for: this process pulls and merges for all of them
_MEMORY = 0.5  # share of the machine's memory that training in workers may take by the count of its cost


@dataclass(frozen=True)
class Crew:
    """Who trains.

    number: of processes; 1 is this one.
    why_one: why it is this one alone, where there are several cores.
    """

    train: Trainer
    number: int = 1
    why_one: str | None = None

    def __str__(self) -> str:
        """As the header of a run states it."""
        why = f" ({self.why_one})" if self.why_one else ""
        return f"{self.number} worker{'s' * (self.number > 1)}{why}"


@contextmanager
def crew(run: Run, setup: Setup, participants: Sequence[Participant], learner: Learner) -> Iterator[Crew]:
    """The processes that ``run.workers`` asks for; by default one per core that the participants of a round
    can use, where nothing speaks against it. Raises UserError for a number that cannot be had."""
    number, why = _number(run, setup, participants)
    workers = None
    if number > 1:
        try:
            workers = Workers(number, participants, learner)
        except CannotFork as error:
            why = f"a forked process cannot train: {error}"
            _refuse(run, why)
    if workers is None:
        yield Crew(in_turn, 1, why)
        return
    try:
        yield Crew(workers.train, number)
    finally:
        workers.close()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(run: Run, setup: Setup, participants: Sequence[Participant]) -> tuple[int, str | None]:
    training = len(setup.attendance.present(0, participants))
    wanted = min(min(cores(), _MOST) if run.workers == "auto" else run.workers, training)
    if wanted == 1:
        return 1, None
    why = _impossible(run, setup) or _counting(setup)
    if why is not None:
        _refuse(run, why)
    elif run.workers == "auto":
        why = _unwise(setup, participants, wanted)
    return (1, why) if why is not None else (wanted, None)


def _refuse(run: Run, why: str) -> None:
    if run.workers != "auto":
        raise UserError(f"expected a run that {run.workers} workers can train, but {why}; set workers to 1")


def _impossible(run: Run, setup: Setup) -> str | None:
    if setup.submodels.device.type != "cpu":
        return f"participants train on {setup.submodels.device}"
    if setup.together.tries:
        return "participants train at once (batched=on)"
    if run.threads > 1:
        return f"operations take {run.threads} threads, which a forked process does not have"
    if not sys.platform.startswith("linux"):
        return "processes can be forked safely on Linux only"
    if multiprocessing.current_process().daemon:
        return "this process is a daemon, which may have no processes of its own"
    return None


def _counting(setup: Setup) -> str | None:
    if names := setup.submodels.counters():
        return f"the model's forward counts in {', '.join(names)}, which processes cannot share"
    return None


def _unwise(setup: Setup, participants: Sequence[Participant], number: int) -> str | None:
    own = next((one.data for one in participants if not _plain(one.data)), None)
    if own is not None:
        return f"a dataset of type {type(own).__name__} may keep a state that processes cannot share"
    if _may_remember(setup.objective.custom):
        kind = type(setup.objective.custom).__name__
        return f"a loss of type {kind} may keep a state that processes cannot share"
    each = max(
        setup.submodels.cost(plan, setup.run.train, setup.contrast).memory_bytes
        for plan in distinct(participants)
    )
    if number * each > _MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return f"{number} participants at once take {number * each / 1e9:.1f} GB"
    return None


def _may_remember(loss: Any) -> bool:
    """Whether a loss is an object of the user's own with attributes; functions are taken for pure."""
    if isinstance(loss, MethodType):
        loss = loss.__self__
    of_torch = type(loss).__module__.partition(".")[0] == torch.__name__
    return (
        not of_torch and not isinstance(loss, FunctionType | partial) and bool(getattr(loss, "__dict__", {}))
    )


def _plain(data: Dataset[Any]) -> bool:
    """Whether reading a dataset is known to leave nothing behind."""
    if isinstance(data, Subset):
        return _plain(data.dataset)
    if isinstance(data, ConcatDataset):
        return all(map(_plain, data.datasets))
    return isinstance(data, Examples | TensorDataset)
