"""The single home of all shards: the full model on disk, and beside it what a run must not lose."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from msfusion import records
from msfusion.core.axes import Selection
from msfusion.core.merge import Shift
from msfusion.core.overlap import State
from msfusion.core.seeds import derive
from msfusion.errors import UserError
from msfusion.flower.agreed import Agreed
from msfusion.flower.task import Settings, Task
from msfusion.learn.capacity import Capacity
from msfusion.learn.disk_store import DiskStore, last_commit
from msfusion.learn.initial import Start, write_initial
from msfusion.learn.shards import is_checkpoint_file
from msfusion.learn.steps import server_step
from msfusion.runtimes import checkpoint
from msfusion.runtimes.journal import Journal
from msfusion.runtimes.setup import Setup

_DRAFT = "initial.draft"


def check_out(out: Path) -> None:
    """Raise UserError for a run directory in which something else lies than a run of ours or the rest of
    a start that was killed: what bears our names there is replaced."""
    if (out / "initial" / checkpoint.FILE_NAME).exists() or last_commit(out / "model"):
        return
    left = {"lock"} | ({_DRAFT} if _is_draft(out / _DRAFT) else set())
    files = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name] * out.exists()
    if others := [name for name in files if name not in left]:
        raise UserError(
            f"expected a run directory that is empty, absent or holds a run under Flower, got {out} with "
            f"{others[0]}: set out to another directory"
        )


def _is_draft(folder: Path) -> bool:
    """Whether nothing lies in a folder but what the beginning of a run writes there."""
    ours = (checkpoint.FILE_NAME, f"{checkpoint.FILE_NAME}.draft")
    return all(is_checkpoint_file(path.name) or path.name in ours for path in folder.glob("*"))


class Home:
    """The state of a run in its directory: opened where there is none, it begins one; else it goes on.

    Every round ends with a whole checkpoint in ``model``, which holds the values and this state; the file
    ``model/CURRENT`` names it. A crash at any moment leaves the last round that ended.

    done: rounds that have ended.
    run: names the training, for state that participants keep.
    capacities: what each participant can afford, from which the windows follow.
    meaning: hash of what labels or tokens stand for, where participants say it.
    """

    def __init__(self, task: Task, agreed: Agreed) -> None:
        self._task, self._buffers = task, agreed.buffers
        self._settings, self._setup = agreed.settings, agreed.setup
        axes = self._setup.captured.axes
        self.out = Path(self._settings.out).absolute()
        self.journal = Journal(self.out, self._settings.training, Settings().training, axes, [])
        self.overlap = self._setup.first_overlap()
        self.done = 0
        self.run = uuid4().hex
        self.capacities: tuple[Capacity, ...] = ()
        self.meaning: str | None = None
        self._counts: list[Tensor] = []
        if not self._begun():  # else model and settings may have been mended since
            (self.out / records.FILE_NAME).unlink(missing_ok=True)
            self._write_initial(None)
        self.store = self._opened(None)
        self._go_on()

    def _begun(self) -> bool:
        """Whether a round has ended."""
        if last_commit(self.out / "model"):
            return True
        return checkpoint.begun(self._source) and checkpoint.load(self._source)[1]["rounds_done"] > 0

    def begin(self, setup: Setup, capacities: tuple[Capacity, ...], meaning: str | None) -> None:
        """Before the first round of this process: who trains what, and what labels stand for."""
        self._setup, self.capacities, self.meaning = setup, capacities, meaning
        if setup.start:
            if not self.done:  # which widths there are is known only now
                self._write_initial(setup.start)
            self.store = self._opened(setup)
        self._coverage = setup.coverage()
        if self.done:
            self._coverage.restore(self._counts)

    def writing(self, header: records.Header) -> AbstractContextManager[None]:
        """Open the records."""
        return self.journal.writing(header, self.done or None)

    def commit(
        self, merged: Sequence[Selection], describe: Callable[..., records.Round], start: float
    ) -> records.Round:
        """End a round: merge what was pushed, and keep all of it or nothing; its record. Diverged where
        values would not be finite; what was pushed is then forgotten.

        describe: makes the record of ``coverage``, ``shift`` and ``seconds``, which are known at the end.
        start: when the round began, on the clock time.perf_counter.
        """
        round = self.done
        made: list[records.Round] = []

        def seal(folder: Path, shift: Shift | None) -> None:
            for windows in merged:
                self._coverage.add(windows)
            ratio = shift.ratio if shift else None
            seconds = time.perf_counter() - start
            record = describe(coverage=self._coverage.share(), shift=ratio, seconds=seconds)
            self.overlap = self._setup.next_overlap(self.overlap, round, ratio)
            self.done = round + 1
            self._counts = list(self._coverage.state())
            self.journal.round(record)
            self._save(folder)
            made.append(record)

        self.store.commit(server_step(self._settings.server_step, round, self._settings.rounds), seal)
        (record,) = made
        return record

    @property
    def _source(self) -> Path:
        return self.out / "initial"

    def _opened(self, begun: Setup | None) -> DiskStore:
        """The store; what twins there are, is known once it is known who trains what."""
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        if begun and begun.start:
            begun.start(buffers)
        return DiskStore(
            self._source,
            self.out / "model",
            self._setup.captured.axes,
            frozenset(self._setup.captured.trained),
            buffers=buffers,
            measure=self._settings.adapt.measures,
            decay=self._setup.decay,
            twins=begun.twins if begun else None,
        )

    def _write_initial(self, start: Start | None) -> None:
        draft = self._source.with_name(_DRAFT)
        shutil.rmtree(draft, ignore_errors=True)
        self.out.mkdir(parents=True, exist_ok=True)
        seed = derive(self._settings.seed, "model")
        write_initial(lambda: self._task.made(self._settings)[0], draft, seed, start=start)
        self._save(draft)
        shutil.rmtree(self._source, ignore_errors=True)
        draft.rename(self._source)

    def _save(self, folder: Path) -> None:
        facts = {
            "run": self.run,
            "overlap": dataclasses.astuple(self.overlap),
            "capacities": [dataclasses.asdict(capacity) for capacity in self.capacities],
            "meaning": self.meaning,
        }
        text = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        counts = {f"coverage/{i}": counts for i, counts in enumerate(self._counts)}
        self.journal.seal(self.done, {**counts, "facts": text}, folder)

    def _go_on(self) -> None:
        free = ["rounds"] if self._settings.rounds_may_change else []
        self.done, tensors = self.journal.load(free, self.store.path)
        if self.done >= self._settings.rounds:
            raise UserError(
                f"expected rounds left to do, but the run in {self.out} has done {self.done} of "
                f"{self._settings.rounds}: raise rounds, or set out to another directory"
            )
        facts = json.loads(bytes(tensors.pop("facts").tolist()))
        self.run, self.overlap = facts["run"], State(*facts["overlap"])
        self.capacities = tuple(Capacity(**stated) for stated in facts["capacities"])
        self.meaning = facts.get("meaning") if self.done else None
        self._counts = [tensors[f"coverage/{i}"] for i in range(len(tensors))]
