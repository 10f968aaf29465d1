"""What this process and its workers say to each other, as JSON: jobs, and how they ended."""

import json
import traceback
from dataclasses import asdict, dataclass

from msfusion.core.axes import Selection
from msfusion.errors import Diverged, UserError

_SENTENCES = {kind.__name__: kind for kind in (UserError, Diverged)}


@dataclass(frozen=True)
class Job:
    """What a worker is to do; the values are in the slot.

    participant: its place among those of the run.
    previous: windows of what it remembers from when it last trained, which is in the slot as well.
    """

    round: int
    participant: int
    windows: Selection
    slot: int
    previous: Selection | None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_bytes(said: bytes) -> "Job":
        """The job that ``to_bytes`` wrote."""
        job = json.loads(said)
        previous = job["previous"]
        job["windows"] = _selection(job["windows"])
        job["previous"] = _selection(previous) if previous is not None else None
        return Job(**job)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    loss: mean loss of the participant, whose values are in the slot then.
    error: what went wrong instead; ``kind`` is the class of an error that is the user's to mend.
    """

    loss: float | None = None
    error: str | None = None
    kind: str | None = None

    @staticmethod
    def of(error: Exception) -> "Outcome":
        if type(error).__name__ in _SENTENCES:
            return Outcome(error=str(error), kind=type(error).__name__)
        return Outcome(error=f"in a worker process:\n{traceback.format_exc()}")

    def result(self) -> float:
        """The loss; raises UserError or Diverged as the worker did, RuntimeError for a bug."""
        if self.error is not None:
            raise _SENTENCES.get(self.kind or "", RuntimeError)(self.error)
        assert self.loss is not None
        return self.loss

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_bytes(said: bytes) -> "Outcome":
        """The outcome that ``to_bytes`` wrote."""
        return Outcome(**json.loads(said))


def _selection(runs: dict[str, list[list[int]]]) -> Selection:
    return {axis: tuple((start, stop) for start, stop in units) for axis, units in runs.items()}
