"""Shards on a peer's disk: every version in a folder of its own, the last two committed ones kept."""

import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from msfusion.errors import UserError
from msfusion.learn.shards import Shards, create_file, move, sync
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.layout import Layout
from msfusion.peers.past import HISTORY, History, Past, read_history, replace_file, unreadable
from msfusion.peers.states import VERSION, Entry, Held, Version

INITIAL = "initial"
COMMITTED = "committed.json"
VERSIONS = "versions"
BLOCKS = "blocks"
_HISTORY = "history.json"


_VERSION: TypeAdapter[Version] = TypeAdapter(Version)
_PART: TypeAdapter[tuple[float, float]] = TypeAdapter(tuple[float, float])
_SHIFT = ".shift.json"
_NOTHING = Held("", frozenset())
_OPEN = 64  # maps of shards that are kept, each of which takes a file descriptor


class Disk:
    """Reads and writes shards; what it says it holds survives a crash at any moment.

    One thread removes versions while others read and write: whoever is at one that goes gets Disturbed.

    folder: of this peer alone.
    first: version 0, whose shards are cut from the checkpoint of initial values in ``folder/initial``.
    past: the rounds that led to the versions, but for the last ones.
    """

    def __init__(self, folder: Path, layout: Layout, first: Version) -> None:
        self._folder, self._layout, self._first = folder, layout, first
        self._versions = folder / VERSIONS
        self._versions.mkdir(parents=True, exist_ok=True)
        self.past = Past(folder / BLOCKS)
        self.past.open()
        self._open: OrderedDict[tuple[Version, int], Shards] = OrderedDict()
        self._initial: Shards | None = None
        self._histories: dict[str, History] = {}  # read once
        self._lock = threading.Lock()
        self._remembering = threading.RLock()  # a whole history is not replaced by one that lacks a shift
        self._removals = 0
        self._removed = folder / "removed"
        shutil.rmtree(self._removed, ignore_errors=True)
        self._removed.mkdir()
        for draft in (*self._versions.glob("**/*.draft"), *folder.glob("committed.*.draft")):
            draft.unlink()
        self._holds = {text: held for text in self._folders() if (held := self._held(text))}

    def committed(self) -> Version:
        """The last version that was committed here."""
        path = self._folder / COMMITTED
        if not path.exists():
            return self._first
        try:
            return _VERSION.validate_json(path.read_bytes())
        except ValidationError:
            raise unreadable(path) from None

    def holds(self) -> dict[str, Held]:
        """What lies on the disk, whole."""
        with self._lock:
            out = dict(self._holds)
        if (self._folder / INITIAL).exists():
            out[self._first.text] = Held("", frozenset(range(len(self._layout))))
        return out

    def has(self, version: Version, shard: int) -> bool:
        """Whether a shard of a version lies on the disk."""
        held = self.holds().get(version.text)
        return held is not None and shard in held.shards

    def shard(self, version: Version, shard: int) -> Mapping[str, Tensor]:
        """The tensors of a shard by the names of its pieces, as views of its file; not to be changed."""
        if version == self._first:
            with self._lock:
                if self._initial is None and not (self._folder / INITIAL).exists():
                    raise Disturbed
                initial = self._initial = self._initial or Shards(self._folder / INITIAL)
            pieces = self._layout.shards[shard]
            return {
                p.name: t[p.start : p.stop] if (t := initial[p.tensor]).ndim else t.reshape(1) for p in pieces
            }
        with self._lock:
            if shard not in self._holds.get(version.text, _NOTHING).shards:
                raise Disturbed
            if (version, shard) not in self._open:
                self._open[version, shard] = Shards(self._path(version, shard))
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end((version, shard))
            return self._open[version, shard]

    def release(self) -> None:
        """Take what has been looked at out of memory."""
        with self._lock:
            for shards in (*self._open.values(), *([self._initial] if self._initial else [])):
                shards.release()

    def write(
        self,
        version: Version,
        shard: int,
        history: History,
        fill: Callable[[Mapping[str, Tensor]], None],
        shift: tuple[float, float] | None = None,
    ) -> None:
        """Write a shard of a version as a whole; ``fill`` sets the values of its tensors.

        shift: its part of the model shift, where that is measured.
        """
        folder = self._versions / version.text
        path = self._path(version, shard)
        with self._while_kept():
            with self._remembering:
                if not (folder / _HISTORY).exists():
                    self.remember(version, history)
                    sync(self._versions)
            draft = path.with_suffix(f".{threading.get_ident()}.draft")
            create_file(draft, self._layout.specs(shard))
            try:
                shards = Shards(draft, writable=True)
                fill(shards)
                shards.sync()
                shards.release()
                if shift is not None:
                    replace_file(path.with_suffix(_SHIFT), _PART.dump_json(shift))
                move(draft, path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        with self._lock:
            if not path.exists():
                raise Disturbed
            before = self._holds.get(version.text, Held(history.parent, frozenset()))
            shifts = before.shifts if shift is None else {**before.shifts, shard: shift}
            self._holds[version.text] = Held(before.parent, before.shards | {shard}, shifts)

    def history(self, version: Version) -> History | None:
        """How a version came about, where the disk has anything of it."""
        if version == self._first:
            return History("", version, ())
        with self._lock:
            known, removals = self._histories.get(version.text), self._removals
        path = self._versions / version.text / _HISTORY
        if known is None and path.exists():
            known = read_history(path)
            self._know(version, known, removals)
        return known

    def remember(self, version: Version, history: History) -> None:
        """Keep the history of a version of which this peer need not hold a shard."""
        folder, removals = self._versions / version.text, self._removals
        with self._remembering, self._while_kept():
            if self.history(version) == history:
                return
            folder.mkdir(exist_ok=True)
            replace_file(folder / _HISTORY, HISTORY.dump_json(history))
            self._know(version, history, removals)

    def following(self, version: Version, entry: Entry) -> History:
        """The history of what follows from a version that lies here."""
        known = self.history(version)
        assert known is not None
        return self.past.going_on(version, known, entry)

    def _know(self, version: Version, history: History, removals: int) -> None:
        """Keep a history in memory, unless something was removed since there were so many removals."""
        with self._lock:
            if self._removals == removals:
                self._histories[version.text] = history

    def commit(self, version: Version) -> None:
        """Go on from ``version``; what is older than the version before it, or of another lineage, goes."""
        replace_file(self._folder / COMMITTED, _VERSION.dump_json(version))
        history = self.history(version)
        parent = history.parent if history else ""
        for text in self._folders():
            old = Version.parse(text)
            kept = old == version or (old.round == version.round - 1 and old.lineage == parent)
            if old.round <= version.round and not kept:
                self._remove(old)
        if version.round > 1 and (self._folder / INITIAL).exists():
            with self._lock:
                self._initial = None
            self._clear(self._folder / INITIAL)

    def discard_after(self, version: Version) -> None:
        """Drop what was written of rounds behind ``version``, which the group plays anew."""
        for text in self._folders():
            if Version.parse(text).round > version.round:
                self._remove(Version.parse(text))

    def _remove(self, version: Version) -> None:
        with self._lock:
            self._holds.pop(version.text, None)
            for key in [key for key in self._open if key[0] == version]:
                del self._open[key]
        self._clear(self._versions / version.text)

    def _clear(self, folder: Path) -> None:
        """Remove a folder, at one moment for everyone."""
        with self._lock:
            self._removals += 1
            self._histories.pop(folder.name, None)
            gone = self._removed / str(self._removals)
            with suppress(FileNotFoundError):
                folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _while_kept(self) -> Iterator[None]:
        """What goes wrong with files while a version is removed is Disturbed: whoever still wants it asks
        again."""
        before = self._removals
        try:
            yield
        except (OSError, UserError):
            with self._lock:
                removed = self._removals != before
            if removed:
                raise Disturbed from None
            raise

    def _folders(self) -> Sequence[str]:
        """The versions of which something lies here; what else is there (.DS_Store) is none."""
        return sorted(path.name for path in self._versions.iterdir() if re.fullmatch(VERSION, path.name))

    def _held(self, text: str) -> Held | None:
        folder = self._versions / text
        shards = {
            int(path.stem) for path in folder.glob("*.safetensors") if re.fullmatch("[0-9]+", path.stem)
        }
        if not shards or not (folder / _HISTORY).exists():
            return None
        parent = read_history(folder / _HISTORY).parent
        parts = {n: folder / f"{n:05d}{_SHIFT}" for n in shards}
        shifts = {n: _PART.validate_json(path.read_bytes()) for n, path in parts.items() if path.exists()}
        return Held(parent, frozenset(shards), shifts)

    def _path(self, version: Version, shard: int) -> Path:
        return self._versions / version.text / f"{shard:05d}.safetensors"
