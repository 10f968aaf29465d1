"""How versions came about: from one's own disk, or from somebody who knows."""

from dataclasses import replace
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from msfusion.peers import agreement
from msfusion.peers.board import Board
from msfusion.peers.disk import Disk
from msfusion.peers.network import Network
from msfusion.peers.past import BLOCKS, HISTORY, Block, History
from msfusion.peers.states import States, Version

T = TypeVar("T")


class Histories:
    """Finds histories.

    shards, participants: how many there are.
    measured: whether the model shift of every round belongs into them.
    """

    def __init__(
        self, disk: Disk, board: Board, network: Network, shards: int, participants: int, *, measured: bool
    ) -> None:
        self._disk, self._board, self._network = disk, board, network
        self._shards, self._participants, self._measures = shards, participants, measured

    def of(self, version: Version) -> History | None:
        """How a version came about, to the end: with the model shift of the last round, where it is measured,
        from all shards or from somebody who has seen them all."""
        states = self._board.here()
        others = self._knowing(version, states)
        own = self._disk.history(version)
        if own is not None and (kept := self._kept(version, own, states, others)):
            return kept
        for n in others:
            theirs = _valid(HISTORY, self._network.text([n], f"history/{version.text}"))
            if theirs is None or theirs.since(version) != () or not self._possible(theirs):
                continue
            if kept := self._kept(version, theirs, states, [n]):
                return kept
        return None

    def _knowing(self, version: Version, states: States) -> list[int]:
        """The others who know of a version, those who go on from it first."""
        others = [n for n, s in states.items() if n != self._board.own.number]
        known = [n for n in others if version == states[n].committed or version.text in states[n].holds]
        return sorted(known, key=lambda n: states[n].committed != version)

    def _kept(self, version: Version, history: History, states: States, sources: list[int]) -> History | None:
        """The history, kept on the disk, if it is known to the end and the blocks before it can be had."""
        whole = self.whole(version, history, states)
        if whole is None or not self._fetched(sources, whole.base):
            return None
        self._disk.remember(version, whole)
        return whole

    def _fetched(self, sources: list[int], base: Version) -> bool:
        """Get the blocks up to a version that are not here; whether all are here now."""
        missing: list[tuple[Version, Block]] = []
        while not self._disk.past.has(base):
            block = _valid(BLOCKS, self._network.text(sources, f"block/{base.text}"))
            if block is None or not block.leads_to(base) or not self._possible(block):
                return False
            missing.append((base, block))
            base = block.base
        for version, block in reversed(missing):
            self._disk.past.seal(version, block)
        return True

    def _possible(self, told: History | Block) -> bool:
        return all(agreement.possible(entry, self._participants) for entry in told.entries)

    def whole(self, version: Version, history: History, states: States) -> History | None:
        """The history with the model shift of its last round; None as long as that cannot be known."""
        if not (self._measures and history.entries) or history.entries[-1].shift is not None:
            return history
        shift = agreement.whole_shift(version, states, self._shards)
        if shift is None:
            return None
        *before, last = history.entries
        return replace(history, entries=(*before, replace(last, shift=shift)))


def _valid(kind: TypeAdapter[T], text: bytes | None) -> T | None:
    """What another peer has sent, if it is of this kind."""
    try:
        return None if text is None else kind.validate_json(text)
    except ValidationError:
        return None
