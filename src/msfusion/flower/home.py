"""The single home of all shards: the full model on disk, and beside it what a run must not lose."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import torch

from msfusion import records
from msfusion.core.axes import Selection
from msfusion.core.coverage import Coverage
from msfusion.core.merge import Shift
from msfusion.core.overlap import State
from msfusion.core.seeds import derive
from msfusion.errors import UserError
from msfusion.flower.agreed import Agreed
from msfusion.flower.task import Task
from msfusion.learn.disk_store import DiskStore
from msfusion.learn.initial import write_initial
from msfusion.learn.steps import server_step
from msfusion.runtimes.journal import Journal


class Home:
    """The state of a run in its directory: opened where there is none, it begins one; else it goes on.

    Every round ends with a whole checkpoint in ``model``, which holds the values and this state; the file
    ``model/CURRENT`` names it. A crash at any moment leaves the last round that ended.

    done: rounds that have ended.
    run: names the training, for state that participants keep.
    """

    def __init__(self, task: Task, agreed: Agreed) -> None:
        self._agreed = agreed
        self._settings, setup = agreed.settings, agreed.setup
        axes = setup.captured.axes
        self.out = Path(self._settings.out).absolute()
        self.journal = Journal(self.out, self._settings.training, axes, [])
        self.coverage = Coverage(axes, setup.parameters, setup.plan)
        self.overlap = setup.first_overlap()
        self.done = 0
        self.run = uuid4().hex
        source = self.out / "initial"
        begins = not source.exists()
        if begins:
            self._begin(task, source)
        self.store = DiskStore(
            source,
            self.out / "model",
            axes,
            frozenset(setup.parameters),
            buffers=agreed.buffers,
            measure=self._settings.adapt.measures,
        )
        if not begins:
            self._go_on()

    def writing(self, header: records.Header) -> AbstractContextManager[None]:
        """Open the records."""
        started = (self.out / records.FILE_NAME).exists()
        return self.journal.writing(header, self.done if started else None)

    def commit(self, merged: Sequence[Selection], record: records.Round, start: float) -> records.Round:
        """End a round: merge what was pushed, and keep all of it or nothing.

        record: of the round; what is known at the end only is filled in.
        start: when the round began, on the clock time.perf_counter.
        """
        setup, round = self._agreed.setup, self.done
        for windows in merged:
            self.coverage.add(windows)
        complete = record.copy()

        def seal(folder: Path, shift: Shift | None) -> None:
            ratio = shift.ratio if shift else None
            complete["shift"], complete["coverage"] = ratio, self.coverage.summary().share
            complete["seconds"] = time.perf_counter() - start
            self.overlap = setup.next_overlap(self.overlap, round, ratio)
            self.done = round + 1
            self.journal.round(complete)
            self._save(folder)

        self.store.commit(server_step(self._settings.server_step, round, self._settings.rounds), seal)
        return complete

    def _begin(self, task: Task, source: Path) -> None:
        draft = source.with_name("initial.draft")
        shutil.rmtree(draft, ignore_errors=True)
        self.out.mkdir(parents=True, exist_ok=True)
        write_initial(lambda: task.model(self._settings)[0], draft, derive(self._settings.seed, "model"))
        self._save(draft)
        draft.rename(source)

    def _save(self, folder: Path) -> None:
        tables = {f"coverage/{i}": table for i, table in enumerate(self.coverage.state())}
        overlap = torch.tensor(dataclasses.astuple(self.overlap), dtype=torch.float64)
        run = torch.tensor(list(bytes.fromhex(self.run)), dtype=torch.uint8)
        self.journal.save(self.done, {**tables, "overlap": overlap, "run": run}, folder)

    def _go_on(self) -> None:
        free = ["rounds"] if self._settings.rounds_may_change else []
        self.done, tensors = self.journal.load(free, self.store.path)
        if self.done >= self._settings.rounds:
            raise UserError(
                f"expected rounds left to do, but the run in {self.out} has done {self.done} of "
                f"{self._settings.rounds}: raise rounds, or set out to another directory"
            )
        rate, since, total, measured = tensors["overlap"].tolist()
        self.overlap = State(rate, int(since), total, int(measured))
        self.run = bytes(tensors["run"].tolist()).hex()
        self.coverage.restore([tensors[f"coverage/{i}"] for i in range(len(self.coverage.state()))])
