"""What a run leaves behind: `records.jsonl` in its run directory, one header line, then one line per round.

A line is complete when its newline is written, so a run that is killed loses at most the line it was writing.
Numbers are plain JSON: a value that is not finite is written as null.
"""

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Self, cast

from annotated_types import Len
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from msfusion.errors import UserError

FILE_NAME = "records.jsonl"
FORMAT = 1

Ranges = list[
    Annotated[list[int], Len(2, 2)]
]  # half-open [first, end) ranges of units; wrapped, it is two: [[0, 4], [28, 32]]


class ModelFacts(TypedDict):
    """The full model."""

    name: str
    parameters: int
    axes: dict[str, int]  # axis -> units


class ParticipantFacts(TypedDict):
    """What one participant has and what its sub-model costs it."""

    participant: int
    examples: int
    share: float  # of the full model's parameters
    parameters: int
    flops_per_step: float
    memory_bytes: float
    bytes_per_round: float


class Header(TypedDict):
    """The first line: what was run, on what."""

    kind: Literal["header"]
    format: int
    method: str
    seed: int
    config: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    hardware: str
    metric: Literal["accuracy", "loss"]
    model: ModelFacts
    participants: list[ParticipantFacts]
    pictured: list[str]  # the axes whose windows every round records
    data: NotRequired[str]  # from Python: digest of the examples, whoever has them, where they are in memory


class Dropped(TypedDict):
    """A participant whose contribution was not merged in its round, and why; it may have trained, and paid
    for that."""

    participant: int
    reason: str


class Evaluation(TypedDict):
    """What the method trains, on held-out examples after the round."""

    accuracy: float | None
    loss: float | None
    examples: int


class Own(TypedDict):
    """What the peer that wrote the record saw of the round itself."""

    participant: int
    score: Evaluation  # its sub-model as received, on its own examples
    sent: int  # bytes of values so far, since the peer was started
    received: int
    here: list[int]  # peers at the end of its training


class Round(TypedDict):
    """One round."""

    kind: Literal["round"]
    round: int
    participants: list[int]
    dropped: list[Dropped]
    train_loss: float | None
    flops: float  # sum over participants, this round
    bytes: float  # sum over participants, this round
    coverage: float
    overlap: float
    shift: float | None
    windows: dict[str, dict[str, Ranges]]  # axis -> participant -> units; an axis without an entry is whole
    seconds: float
    evaluation: Evaluation | None
    one_by_one: NotRequired[str]  # why participants that were to train at once did not
    own: NotRequired[Own]  # among peers
    versions: NotRequired[dict[str, str]]  # from here on, where a process with others resumed the run


@dataclass(frozen=True)
class Run:
    """A run as recorded so far; `rounds` ascend."""

    header: Header
    rounds: tuple[Round, ...]

    @property
    def participants(self) -> int:
        """How many there are; a header of peers, or under Flower, lists those known at the start alone, and
        one of a run from Python has no setting of their number."""
        return int(self.header["config"].get("participants", len(self.header["participants"])))


class Writer:
    """Appends the records of one run; close it behind the last.

    `Writer(directory, header)` starts a new run and refuses a directory that holds rounds (UserError);
    `Writer.resume(directory, header, rounds_done)` continues it.
    """

    def __init__(self, directory: Path, header: Header) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE_NAME
        if path.exists() and path.read_bytes().count(b"\n") > 1:
            raise UserError(
                f"expected a directory without a run, but {path} exists: "
                "choose another directory, resume this run, or delete it"
            )
        self._file = path.open("wb")
        self._changed: dict[str, str] = {}
        self._write(header)

    @classmethod
    def resume(cls, directory: Path, header: Header, rounds_done: int) -> Self:
        """Continues after `rounds_done` rounds: lines of later rounds, and a torn last line, are cut off.

        The header of the first start stays; other versions of what computes are told by a warning and by the
        next round. UserError when the directory holds a run of another method, seed
        or model, or when fewer than `rounds_done` rounds are recorded.
        """
        path = directory / FILE_NAME
        lines = _complete_lines(path)
        first = next(lines)
        _check_same_run(path, _header(path, first), header)
        end, last, versions = len(first), -1, _header(path, first)["versions"]
        for record, length in _rounds(path, lines):
            if record["round"] < rounds_done:
                end, last = end + length, record["round"]
                versions = record.get("versions", versions)
        if last != rounds_done - 1:
            raise UserError(
                f"expected {path} to record round {rounds_done - 1}, which the checkpoint holds, but it ends "
                f"before: resume from an earlier checkpoint, or start in another directory"
            )
        os.truncate(path, end)
        writer = cls.__new__(cls)
        writer._file = path.open("ab")
        writer._changed = {} if versions == header["versions"] else header["versions"]
        if writer._changed:
            _warn_of_versions(path, versions, header["versions"])
        return writer

    def round(self, record: Round) -> None:
        """Appends one round; it is in the operating system's hands on return."""
        self._write({**record, "versions": self._changed} if self._changed else record)
        self._changed = {}

    def sync(self) -> None:
        """Returns once everything written is on the disk; call it before a checkpoint is committed."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes; more than once does no harm."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _write(self, record: Mapping[str, object]) -> None:
        self._file.write(json.dumps(finite(record), allow_nan=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()


def read(path: Path | str) -> Run:
    """The run at `path` (a run directory, or its records file); a torn last line is left out.

    UserError when there is no such file, or when it is not a records file of this format.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    lines = _complete_lines(path)
    header = _header(path, next(lines))
    return Run(header, tuple(record for record, _ in _rounds(path, lines)))


def rounds(directory: Path) -> Iterator[Round]:
    """The rounds recorded in a directory, of which one at a time is in memory; UserError as for `read`."""
    path = directory / FILE_NAME
    lines = _complete_lines(path)
    _header(path, next(lines))
    return (record for record, _ in _rounds(path, lines))


def cut(directory: Path) -> int:
    """Cuts the records in a directory behind their last valid line, for a run that can write them again; how
    many rounds are left, none where there is no file or its first line is torn."""
    path = directory / FILE_NAME
    if not path.exists():
        return 0
    with path.open("rb") as file:
        if not file.readline().endswith(b"\n"):
            return 0
    lines = _complete_lines(path)
    first = next(lines)
    _header(path, first)
    count, end = 0, len(first)
    with suppress(UserError):
        for _, length in _rounds(path, lines):
            count, end = count + 1, end + length
    os.truncate(path, end)
    return count


def _complete_lines(path: Path) -> Iterator[bytes]:
    """At least one line; UserError where there is none."""
    try:
        file = path.open("rb")
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise UserError(
            f"expected records at {path}, but: {reason}; give a run directory that holds {FILE_NAME}"
        ) from error
    with file:
        first = file.readline()
        if not first.endswith(b"\n"):
            raise UserError(f"expected records in {path}, but it holds no complete line: start the run again")
        yield first
        yield from (line for line in file if line.endswith(b"\n"))


def _header(path: Path, line: bytes) -> Header:
    header = _object(path, 1, line)
    if header.get("kind") != "header":
        raise _foreign(path, 1, "is not a header")
    if header.get("format") != FORMAT:
        raise UserError(
            f"expected records of format {FORMAT} in {path}, got format {header.get('format')}: "
            "read them with the version of msfusion that wrote them"
        )
    _require(path, 1, header, _HEADER)
    return cast(Header, header)


def _rounds(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[Round, int]]:
    """Rounds, and the bytes of their lines."""
    last = -1
    for number, line in enumerate(lines, start=2):
        record = _object(path, number, line)
        _require(path, number, record, _ROUND)
        if record["kind"] != "round" or not isinstance(record["round"], int) or record["round"] <= last:
            raise _foreign(path, number, f"is not a round after round {last}")
        last = record["round"]
        yield cast(Round, record), len(line)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _foreign(path, number, "is not JSON") from error
    if not isinstance(value, dict):
        raise _foreign(path, number, "is not a JSON object")
    return value


_HEADER: TypeAdapter[Header] = TypeAdapter(Header)
_ROUND: TypeAdapter[Round] = TypeAdapter(Round)


def _require(path: Path, number: int, record: Mapping[str, object], kind: TypeAdapter[Any]) -> None:
    try:
        kind.validate_python(record)
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), e["type"], e["input"]) for e in error.errors()]
        missing = sorted(place for place, kind_of, _ in found if kind_of == "missing")
        place, _, value = found[0]
        what = f"lacks {', '.join(missing)}" if missing else f"has {value!r} for {place}"
        raise _foreign(path, number, what) from None


def _foreign(path: Path, number: int, what: str) -> UserError:
    return UserError(
        f"expected the records of an msfusion run in {path}, but line {number} {what}: give another file"
    )


def _check_same_run(path: Path, old: Header, new: Header) -> None:
    facts: list[tuple[str, object, object]] = [
        ("method", old["method"], new["method"]),
        ("seed", old["seed"], new["seed"]),
        ("model", old["model"], new["model"]),
    ]
    for name, before, now in facts:
        if before != now:
            raise UserError(
                f"expected to resume the run in {path} with its {name} {before}, got {now}: "
                "resume it with the configuration it was started with, or start in another directory"
            )


def _warn_of_versions(path: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    said = ", ".join(f"{name} {now.get(name, 'none')} after {before.get(name, 'none')}" for name in names)
    warnings.warn(
        f"the run in {path.parent} goes on with {said}: its numbers may come out otherwise", stacklevel=3
    )


def finite(value: object) -> object:
    """JSON has no NaN and no infinity; null says "no number"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
