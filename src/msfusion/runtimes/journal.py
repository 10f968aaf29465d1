"""A run directory: its records and its checkpoint, kept in step."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from msfusion import records
from msfusion.core.axes import AxisMap
from msfusion.errors import UserError
from msfusion.runtimes import checkpoint
from msfusion.runtimes.run import Run
from msfusion.runtimes.sole import sole
from msfusion.settings import differences, flat

_FREE = {"workers"}
"""Settings that change nothing of what comes of a run: a resumed one may have others. Workers do not, as
``cores`` keeps what has a state in one process."""

_FREE_FORM = ("model.options", "model.axes")
"""Tables whose keys are no settings."""


def changed(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any], free: Collection[str] = ()
) -> str:
    """What differs between the settings of a saved run and others, in words; empty where nothing does.

    A setting that the run lacks is newer than it, and counts as its default, but for those that a run from
    Python does not have at all.

    defaults: of the settings of now. free: settings that may differ.
    """
    new = flat(now)
    own = flat(defaults if _of_command_line(before) else dataclasses.asdict(Run()))
    old = {key: value for key, value in own.items() if key in new} | flat(before)
    old = {key: value for key, value in old.items() if key in new or value != "null"}
    return differences(old, new, {*free, *_FREE})


def unknown(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Settings of a saved run that this version does not know, in words, but for those without a value; empty
    for a run of the command line that goes on from Python: ``changed`` tells of it."""
    if _of_command_line(before) and not _of_command_line(now):
        return ""
    known = flat(defaults).keys() | flat(now).keys()
    return ", ".join(
        f"{key} = {value}"
        for key, value in flat(before).items()
        if key not in known and not key.startswith(_FREE_FORM) and value != "null"
    )


def _of_command_line(settings: Mapping[str, Any]) -> bool:
    """Whether they name a model: Python code hands one over."""
    return "model" in settings


class Journal:
    """What a run leaves on disk; with no directory it leaves nothing.

    Records and checkpoints are written by a thread of their own, in the order in which they were handed over;
    what goes wrong there is raised by the next call, or at the end of ``writing``.

    settings: the configuration as the records and the checkpoint state it.
    defaults: the same where nothing is set.
    axes: the model's axis map; a checkpoint of a model with another one is refused.
    examples: number of examples of each participant; a checkpoint of other numbers is refused.
    transient: tensors of the model that are in no state dict: an export leaves them out.
    data: digest of the examples where they have one; a checkpoint of another one is refused.
    """

    def __init__(
        self,
        directory: Path | None,
        settings: Mapping[str, Any],
        defaults: Mapping[str, Any],
        axes: AxisMap,
        examples: Sequence[int],
        transient: Collection[str] = (),
        data: str | None = None,
    ) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._defaults = defaults
        self._directory = directory
        self._examples = list(examples)
        self._transient = sorted(transient)
        self._data = data
        self._fingerprint = checkpoint.fingerprint(axes.to_json())
        self._writer: records.Writer | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes from the run directory; UserError where one is at it."""
        if self._directory is None:
            return nullcontext()
        return sole(self._directory, "process", "wait for its end, or take another directory")

    @contextmanager
    def writing(self, header: records.Header, rounds_done: int | None) -> Iterator[None]:
        """Open the records: new ones for None, else those of a run with so many rounds done."""
        if self._directory is None:
            yield
            return
        if rounds_done is None:
            self._writer = records.Writer(self._directory, header)
        else:
            self._writer = records.Writer.resume(self._directory, header, rounds_done)
        self._thread = ThreadPoolExecutor(1, "journal")
        try:
            yield
        finally:
            try:
                self.wait()
            finally:
                self._thread.shutdown()
                self._writer.close()
                self._writer = self._thread = None

    @property
    def keeps(self) -> bool:
        """Whether anything is kept on disk."""
        return self._directory is not None

    def round(self, record: records.Round) -> None:
        """Append the record of a round."""
        if self._writer:
            self._later(self._writer.round, record)

    def save(self, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Save the state after ``done`` rounds, as it is now; it is on the disk when the next ``save``
        returns, or ``writing`` ends."""
        if self._directory and self._writer:
            self.wait()  # one copy of the state at a time
            state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            self._later(self._checkpoint, self._directory, self._writer, state, self._facts(done))

    def seal(self, done: int, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """As ``save``, into a folder of its own; returns when it is on the disk, behind all records."""
        self.wait()
        if self._writer:
            self._writer.sync()
        checkpoint.save(folder, tensors, self._facts(done))

    def _facts(self, done: int) -> dict[str, Any]:
        same = {"axes": self._fingerprint, "examples": self._examples, "data": self._data}
        return {"rounds_done": done, "settings": self.settings, "transient": self._transient, **same}

    @staticmethod
    def _checkpoint(
        directory: Path, writer: records.Writer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        writer.sync()  # the checkpoint may not know of rounds that the records do not
        checkpoint.save(directory, tensors, facts)

    def _later(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have it done behind what is pending; raises what went wrong so far."""
        assert self._thread is not None
        for future in [future for future in self._pending if future.done()]:
            self._pending.remove(future)
            future.result()
        self._pending.append(self._thread.submit(work, *arguments))

    def wait(self) -> None:
        """Wait until all is written; raises the first error, after which nothing more is written."""
        pending, self._pending = self._pending, []
        try:
            for future in pending:
                future.result()
        except BaseException:
            for future in pending:
                future.cancel()
            raise

    def load(self, free: Collection[str], folder: Path | None = None) -> tuple[int, dict[str, Tensor]]:
        """Rounds done and tensors of the checkpoint; raises UserError where it is not one of this run.

        free: settings, as ``train.lr``, that may differ from those of the saved run.
        folder: where it lies, if not in the run directory.
        """
        if self._directory is None:
            raise UserError("expected a run directory to resume from, got none; name the one of the run")
        tensors, facts = checkpoint.load(folder or self._directory)
        if facts["axes"] != self._fingerprint:
            raise UserError(
                f"expected the checkpoint in {self._directory} to be of this model, it is of another; "
                "use the run's own model or another directory"
            )
        if strange := unknown(facts["settings"], self.settings, self._defaults):
            raise UserError(
                f"expected settings that this version of msfusion knows in {self._directory}, got {strange}; "
                "go on with the version that made the run"
            )
        if differ := changed(facts["settings"], self.settings, self._defaults, free):
            raise UserError(
                f"expected the settings of the run in {self._directory}, got {differ}; "
                "resume with the same settings or use another directory"
            )
        self._check_data(facts, moved="data.path" in free)
        return int(facts["rounds_done"]), tensors

    def _check_data(self, facts: Mapping[str, Any], *, moved: bool) -> None:
        """moved: the data may have been read elsewhere, where images may be decoded by other versions."""
        todo = "name them" if moved else "resume with the same data or use another directory"
        if facts["examples"] != self._examples:
            raise UserError(
                f"expected the data of the run in {self._directory}, whose participants have "
                f"{facts['examples']} examples, got {self._examples}; {todo}"
            )
        if None in (was := facts.get("data"), self._data) or was == self._data:
            return
        said = f"the data of the run in {self._directory}, got others of the same size"
        if not moved:
            raise UserError(f"expected {said}; {todo}")
        warnings.warn(f"expected {said}; the score is of these", stacklevel=2)
