"""A run directory: its records and its checkpoint, kept in step."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from msfusion import records
from msfusion.core.axes import AxisMap
from msfusion.errors import UserError
from msfusion.runtimes import checkpoint
from msfusion.settings import flat


class Journal:
    """What a run leaves on disk; with no directory it leaves nothing.

    settings: the configuration as the records and the checkpoint state it.
    axes: the model's axis map; a checkpoint of a model with another one is refused.
    examples: number of examples of each participant; a checkpoint of other data is refused.
    """

    def __init__(
        self, directory: Path | None, settings: Mapping[str, Any], axes: AxisMap, examples: Sequence[int]
    ) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.axes = axes
        self._directory = directory
        self._examples = list(examples)
        self._fingerprint = checkpoint.fingerprint(axes.to_json())
        self._writer: records.Writer | None = None

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
        try:
            yield
        finally:
            self._writer.close()
            self._writer = None

    @property
    def keeps(self) -> bool:
        """Whether anything is kept on disk."""
        return self._directory is not None

    def round(self, record: records.Round) -> None:
        """Append the record of a round."""
        if self._writer:
            self._writer.round(record)

    def save(self, done: int, tensors: Mapping[str, Tensor], folder: Path | None = None) -> None:
        """Save the state after ``done`` rounds; by default in the run directory."""
        if self._directory:
            if self._writer:
                self._writer.sync()
            facts = {"rounds_done": done, "settings": self.settings}
            same = {"axes": self._fingerprint, "examples": self._examples}
            checkpoint.save(folder or self._directory, tensors, facts | same)

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
        if differ := _differences(flat(facts["settings"]), flat(self.settings), free):
            raise UserError(
                f"expected the settings of the run in {self._directory}, got {differ}; "
                "resume with the same settings or use another directory"
            )
        if facts["examples"] != self._examples:
            raise UserError(
                f"expected the data of the run in {self._directory}, whose participants have "
                f"{facts['examples']} examples, got {self._examples}; "
                "resume with the same data or use another directory"
            )
        return int(facts["rounds_done"]), tensors


def _differences(before: Mapping[str, str], now: Mapping[str, str], free: Collection[str]) -> str:
    """What differs between settings by their dotted names, in words; empty where nothing does."""
    keys = sorted((before.keys() | now.keys()) - set(free))
    pairs = {key: (now.get(key), before.get(key)) for key in keys}
    return ", ".join(
        f"{key} = {_said(new)} where the run has {_said(old)}"
        for key, (new, old) in pairs.items()
        if new != old and {new, old} != {None, "{}"}  # of a table that is empty on one side, its keys tell
    )


def _said(value: str | None) -> str:
    return "none" if value in (None, "null") else value
