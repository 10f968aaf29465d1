"""Several runs at once, one process each: on a CPU the best use of the cores, as each run uses one thread."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeAlias

from msfusion import records
from msfusion.capture import Capture
from msfusion.commands.training import simulation_of
from msfusion.config import Config
from msfusion.data import load as load_data
from msfusion.errors import Diverged, UserError, warn_in_sentences
from msfusion.models import MODELS
from msfusion.runtimes.checkpoint import begun
from msfusion.runtimes.interrupt import interrupt

Report = Callable[[int, records.Round], None]
"""Called with the number of a task and the record of a round."""

Reports: TypeAlias = "SimpleQueue[tuple[int, records.Round]]"


@dataclass(frozen=True)
class Task:
    """One run: a configuration and its directory.

    resume: continue it where it has been started.
    """

    config: Config
    out: Path
    resume: bool


def run_all(tasks: Sequence[Task], jobs: int, report: Report) -> list[str]:
    """Run all tasks, ``jobs`` at a time; the first error, or Ctrl-C, ends all of them. A run that diverges
    ends alone, without its last rounds; returned is what such runs say, in the order of the tasks."""
    if min(jobs, len(tasks)) == 1:
        return _said(_run(number, task, report) for number, task in enumerate(tasks))
    context = multiprocessing.get_context("spawn")
    queue: Reports = context.SimpleQueue()
    stop = context.Event()
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, _start, (queue, stop)) as pool:
        futures = [pool.submit(_work, i, task) for i, task in enumerate(tasks)]
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when="FIRST_COMPLETED")
                _pass_on(queue, report)
                for future in done:
                    future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in pending):
                _pass_on(queue, report)  # a worker waits for room in the queue before it looks at ``stop``
                time.sleep(0.1)
            raise
    return _said(future.result() for future in futures)


def _said(ends: Iterable[str | None]) -> list[str]:
    return [end for end in ends if end is not None]


def _pass_on(queue: Reports, report: Report) -> None:
    while not queue.empty():
        report(*queue.get())


_channel: tuple[Reports, Event] | None = None  # of a worker process, set as it starts


def _start(queue: Reports, stop: Event) -> None:
    global _channel
    _channel = queue, stop
    warn_in_sentences()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between runs; a run saves its last round, then ends
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """However the command ends, its workers do."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int, task: Task) -> str | None:
    assert _channel is not None
    queue, stop = _channel

    def report(number: int, record: records.Round) -> None:
        queue.put((number, {**record, "windows": {}}))
        if stop.is_set():
            interrupt()  # a terminal sends Ctrl-C to this process as well

    if stop.is_set():
        return None
    alone = replace(task.config, workers=1)  # the other cores are those of other runs
    return _run(number, replace(task, config=alone), report)


def _run(number: int, task: Task, report: Report) -> str | None:
    """Why training diverged, where it did."""
    config = task.config
    data = _federation(config.data, config.participants, config.seed)
    model = f"{config.model} {config.data} {data.inputs}"
    if config.model.name not in MODELS:  # may hold constants, which are other ones with another seed
        model += f" {config.seed}"
    simulation = simulation_of(config, data, task.out, _captured.get(model))
    _captured[model] = simulation.setup.captured
    resume = task.resume and begun(task.out)
    try:
        with _named(config):
            simulation.run(resume=resume, watch=lambda record: report(number, record))
    except Diverged as error:
        return str(error)
    return None


@contextmanager
def _named(config: Config) -> Iterator[None]:
    """Says of an error which run it is of."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{config.method} with seed {config.seed}: {error}") from error


_captured: dict[str, Capture] = {}  # of this process: the runs of a comparison share their model's graph
_federation = functools.lru_cache(maxsize=1)(load_data)
