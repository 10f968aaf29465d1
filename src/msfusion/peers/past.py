"""What was merged so far, on a peer's disk: a file for every hundred rounds, and those behind the last file
with each version. Neither memory nor what is written in a round depends on how many there were."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from msfusion.errors import UserError
from msfusion.learn.shards import move, room_for
from msfusion.peers.agreement import following
from msfusion.peers.states import Entry, Version, Word

BLOCK = 100
"""Rounds in a file."""


@dataclass(frozen=True)
class History:
    """How a version came about.

    parent: lineage of the version before; empty for version 0.
    base: the version up to which the rounds are in blocks.
    entries: of the rounds from there on, at most BLOCK; the last may still lack its model shift.
    """

    parent: Word | Literal[""]
    base: Version
    entries: tuple[Entry, ...]

    def since(self, version: Version) -> tuple[Entry, ...] | None:
        """The rounds behind a version; None where it is not the base or one of those that follow from it."""
        at, done = self.base, 0
        while at != version:
            if done == len(self.entries):
                return None
            at, done = following(at, self.entries[done]), done + 1
        return self.entries[done:]


@dataclass(frozen=True)
class Block:
    """BLOCK rounds, which lead from the version ``base`` to the one that the block is named after."""

    base: Version
    entries: tuple[Entry, ...]

    def leads_to(self, version: Version) -> bool:
        """Whether its rounds follow from one another, up to this version."""
        return bool(self.entries) and reduce(following, self.entries, self.base) == version


HISTORY: TypeAdapter[History] = TypeAdapter(History)
BLOCKS: TypeAdapter[Block] = TypeAdapter(Block)


class Past:
    """Blocks by the version that they lead to, which follows from what was merged: so each is written once,
    and one of rounds that the group has played anew does no harm. Where one lies, all before it do.

    folder: of the blocks alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Remove what was being written when the peer ended."""
        self._folder.mkdir(exist_ok=True)
        for draft in self._folder.glob("*.draft"):
            draft.unlink()

    def has(self, version: Version) -> bool:
        """Whether all rounds up to a version lie in blocks."""
        return version.round == 0 or self._path(version).exists()

    def text(self, version: Version) -> bytes:
        """A block as it lies on the disk."""
        return self._path(version).read_bytes()

    def seal(self, version: Version, block: Block) -> None:
        """Keep a block; those before it lie here already."""
        if not self.has(version):
            replace_file(self._path(version), BLOCKS.dump_json(block))

    def going_on(self, version: Version, history: History, entry: Entry) -> History:
        """The history of what follows from a version, whose own rounds go into a block when that is full."""
        if len(history.entries) < BLOCK:
            return History(version.lineage, history.base, (*history.entries, entry))
        self.seal(version, Block(history.base, history.entries))
        return History(version.lineage, version, (entry,))

    def entries(self, history: History, start: int = 0) -> Iterator[Entry]:
        """The rounds from ``start`` on that led to a version; of the blocks, one at a time is in memory."""
        ends, first = [], history.base
        while first.round > start:
            ends.append(first)
            first = self._block(first).base
        for end in reversed(ends):
            block = self._block(end)
            yield from block.entries[max(0, start - block.base.round) :]
        yield from history.entries[max(0, start - history.base.round) :]

    def _block(self, version: Version) -> Block:
        path = self._path(version)
        try:
            return BLOCKS.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise unreadable(path) from None

    def _path(self, version: Version) -> Path:
        return self._folder / f"{version.text}.json"


def read_history(path: Path) -> History:
    """The history in a file; raises UserError where it is none."""
    try:
        return HISTORY.validate_json(path.read_bytes())
    except ValidationError:
        raise unreadable(path) from None


def unreadable(path: Path) -> UserError:
    """What to do about a file of a peer that is broken, or from another version of this package."""
    return UserError(
        f"expected {path} to be written by this version of msfusion, but it cannot be read; "
        "delete the peer's folder, and it gets its shards from the others"
    )


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole; a crash at any moment leaves the old one or the new one."""
    draft = path.with_suffix(f".{threading.get_ident()}.draft")
    with room_for(len(content), path):
        draft.write_bytes(content)
        move(draft, path)
