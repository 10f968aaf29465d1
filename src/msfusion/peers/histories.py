"""How versions came about: from one's own disk, or from somebody who knows."""

from dataclasses import replace
from functools import reduce

from msfusion.peers import agreement
from msfusion.peers.agreement import States, Version, following
from msfusion.peers.board import Board
from msfusion.peers.disk import Disk
from msfusion.peers.network import Network
from msfusion.peers.past import BLOCKS, HISTORY, History


class Histories:
    """Finds histories.

    shards: how many there are.
    measured: whether the model shift of every round belongs into them.
    """

    def __init__(self, disk: Disk, board: Board, network: Network, shards: int, *, measured: bool) -> None:
        self._disk, self._board, self._network = disk, board, network
        self._shards, self._measures = shards, measured

    def of(self, version: Version) -> History | None:
        """How a version came about, to the end: with the model shift of the last round, where it is measured,
        from all shards or from somebody who has seen them all."""
        history, states = self._disk.history(version), self._board.here()
        if history is not None and (whole := self.whole(version, history, states)) is not None:
            if whole != history:
                self._disk.remember(version, whole)
            return whole
        others = [n for n, s in states.items() if n != self._board.own.number]
        for n in sorted(others, key=lambda n: states[n].committed != version):
            if version != states[n].committed and version.text not in states[n].holds:
                continue
            text = self._network.text([n], f"history/{version.text}")
            theirs = HISTORY.validate_json(text) if text else None
            whole = self.whole(version, theirs, states) if theirs else None
            if whole is not None and self._fetched(n, whole.base):
                self._disk.remember(version, whole)
                return whole
        return None

    def _fetched(self, source: int, base: Version) -> bool:
        """Get the blocks up to a version that are not here; whether all are here now."""
        missing: list[tuple[Version, bytes]] = []
        while not self._disk.past.has(base):
            text = self._network.text([source], f"block/{base.text}")
            if text is None:
                return False
            block = BLOCKS.validate_json(text)
            if reduce(following, block.entries, block.base) != base:
                return False
            missing.append((base, text))
            base = block.base
        for version, text in reversed(missing):
            self._disk.past.seal(version, text)
        return True

    def whole(self, version: Version, history: History, states: States) -> History | None:
        """The history with the model shift of its last round; None as long as that cannot be known."""
        if not (self._measures and history.entries) or history.entries[-1].shift is not None:
            return history
        shift = agreement.whole_shift(version, states, self._shards)
        if shift is None:
            return None
        *before, last = history.entries
        return replace(history, entries=(*before, replace(last, shift=shift)))
