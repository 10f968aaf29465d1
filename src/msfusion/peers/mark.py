"""Whose a peer's folder is: of one run, and of one participant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from msfusion.errors import UserError
from msfusion.peers.disk import BLOCKS, COMMITTED, INITIAL, VERSIONS
from msfusion.peers.past import replace_file, unreadable
from msfusion.records import FILE_NAME
from msfusion.settings import differences, flat

_FILE = "run.json"
_OF_A_RUN = (COMMITTED, VERSIONS, INITIAL, BLOCKS, FILE_NAME)


@dataclass(frozen=True)
class Mark:
    """What a folder belongs to.

    run: hash of all on which the peers of a run agree.
    participant: name of the one whose folder it is.
    settings: those on which the peers agree, for saying what differs.
    """

    run: str
    participant: str
    settings: dict[str, Any]


_MARK: TypeAdapter[Mark] = TypeAdapter(Mark)


def claim(folder: Path, mark: Mark) -> None:
    """Mark a new folder; UserError, and nothing changed, where it belongs to another run or participant."""
    path = folder / _FILE
    if path.exists():
        _check(folder, _read(path), mark)
    elif found := next((name for name in _OF_A_RUN if (folder / name).exists()), None):
        raise UserError(
            f"expected a folder that is new or of this run, got {folder} with {found} of another, or of an "
            "earlier version of msfusion: give another --out"
        )
    else:
        replace_file(path, _MARK.dump_json(mark))


def _read(path: Path) -> Mark:
    try:
        return _MARK.validate_json(path.read_bytes())
    except ValidationError:
        raise unreadable(path) from None


def _check(folder: Path, before: Mark, now: Mark) -> None:
    if before.run != now.run:
        differ = differences(flat(before.settings), flat(now.settings)) or "another model or other data"
        raise UserError(
            f"expected the settings of the run in {folder}, got {differ}; give another --out, or the "
            "settings of that run"
        )
    if before.participant != now.participant:
        raise UserError(
            f"expected participant {before.participant}, whose folder {folder} is, got {now.participant}; "
            "give another --out"
        )
