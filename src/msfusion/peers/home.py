"""The shards that a peer keeps: handing out windows of them, and merging contributions into them."""

import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from msfusion.core.axes import Selection
from msfusion.core.merge import Contribution, Merge, squares, take
from msfusion.core.momentum import Momentum
from msfusion.peers.agreement import following
from msfusion.peers.course import Course
from msfusion.peers.disk import Disk
from msfusion.peers.layout import Layout, Share, rows_of, velocity_of
from msfusion.peers.past import HISTORY, History
from msfusion.peers.points import reached
from msfusion.peers.states import Check, Decision, Offer, Version
from msfusion.peers.strip import Strip
from msfusion.peers.wire import Wire

_CACHED = 8  # windows cut from shards that are kept for the next chunks


class Home:
    """Keeps shards on disk, and one's own contribution while it is on offer, as it travels.

    measure: whether merging measures the model shift.
    decay: of server momentum; 0 for none.
    """

    def __init__(
        self, layout: Layout, disk: Disk, course: Course, wire: Wire, *, measure: bool, decay: float
    ) -> None:
        self._layout, self._disk, self._course, self._wire = layout, disk, course, wire
        self._measure, self._decay = measure, decay
        self._cut: OrderedDict[tuple[Version, int, int], Strip] = OrderedDict()
        self._lock = threading.Lock()
        self._offered: tuple[str, Contribution, dict[int, Strip]] | None = None
        self._asked = 0
        self._fetched: dict[tuple[str, int], list[Tensor]] = {}
        self._checks: dict[tuple[str, int], Check] = {}
        self._lent: list[Tensor] = []
        self._spare: dict[int, list[Tensor]] = {}

    def serve(self, path: Sequence[str]) -> Strip | None:
        """What others may ask for: ``values/VERSION/SHARD/PARTICIPANT``, ``shard/VERSION/SHARD`` (all values
        of it), ``file/VERSION/SHARD`` (all that its file holds), ``given/DIGEST/SHARD``,
        ``history/VERSION``, ``block/VERSION``."""
        match path:
            case ["values", version, shard, whose]:
                return self._values(Version.parse(version), int(shard), int(whose))
            case ["shard", version, shard]:
                return self._shard(Version.parse(version), int(shard), values_only=True)
            case ["file", version, shard]:
                return self._shard(Version.parse(version), int(shard), values_only=False)
            case ["given", digest, shard]:
                return self._given(digest, int(shard))
            case ["history", version]:
                history = self._disk.history(Version.parse(version))
                return _text(HISTORY.dump_json(history)) if history else None
            case ["block", version]:
                return _text(self._disk.past.text(Version.parse(version)))
        return None

    def offer(self, digest: str, contribution: Contribution) -> None:
        """Keep a contribution for the homes to fetch, in place of the one before."""
        self._offered, self._asked = (digest, contribution, {}), 0

    def pulled(self, version: Version, shard: int, selection: Selection) -> list[Tensor]:
        """What a window holds of a shard on this disk, as it travels."""
        parts = self._layout.parts(shard, selection)
        cut = self._layout.cut(parts, self._disk.shard(version, shard))
        self._disk.release()  # a window of all shards touches nearly all pages of the model
        return self._wire.values(cut)

    def handed(self, contribution: Contribution, shard: int) -> list[Tensor]:
        """What a contribution holds of a shard, as views."""
        parts = self._layout.handed(shard, contribution.selection)
        return [rows_of(contribution.values[p.piece.tensor], p.rows) for p in parts]

    def own(self, digest: str, shard: int) -> list[Tensor] | None:
        """What one's own contribution on offer holds of a shard."""
        offered = self._offered
        return self.handed(offered[1], shard) if offered is not None and offered[0] == digest else None

    def room(self, shard: int, selection: Selection) -> list[Tensor]:
        """Where what has to be fetched of a contribution to a shard goes; the same memory in every round."""
        shapes = self._layout.shapes(self._layout.handed(shard, selection))
        specs = [replace(spec, dtype=self._wire.dtype(spec.dtype)) for spec in shapes]
        return [self._buffer(spec.bytes).view(spec.dtype).view(spec.shape) for spec in specs]

    def missing(self, offer: Offer, shards: Collection[int]) -> list[int]:
        """Shards for which a contribution is not here yet."""
        return [shard for shard in sorted(shards) if (offer.given.digest, shard) not in self._fetched]

    def take_in(self, offer: Offer, shard: int, selection: Selection, values: list[Tensor]) -> None:
        """Keep and check what was fetched of a contribution."""
        kept = self._disk.shard(offer.version, shard)
        own = self._part(shard, contribution_of(offer, selection), values, kept)
        self._checks[offer.given.digest, shard] = self._check(offer, shard, own)
        self._fetched[offer.given.digest, shard] = values

    def check(self, offer: Offer, shards: Collection[int]) -> Check:
        """What was found in all that these shards got of a contribution."""
        found = [self._checks[offer.given.digest, shard] for shard in sorted(shards)]
        wrong = next((check.wrong for check in found if check.wrong), None)
        squares, count = sum(check.squares for check in found), sum(check.count for check in found)
        return Check(offer.given.digest, min(squares, sys.float_info.max), count, wrong)

    def merge(
        self,
        decision: Decision,
        shard: int,
        offers: Mapping[int, Offer],
        windows: Callable[[int], Selection],
        step: float,
        history: History,
    ) -> None:
        """Write the next version of a shard."""
        stored, layout = self._disk.shard(decision.version, shard), self._layout
        shares = layout.shares(shard)
        values = {share.tensor: share.joined(stored) for share in shares}
        merge = Merge(values, layout.joined_axes(shard), measure=self._measure, twins=layout.twins(shard))
        for given in decision.entry.given:
            whole = contribution_of(offers[given.participant], windows(given.participant))
            own = self._part(shard, whole, self._fetched[given.digest, shard], stored)
            merge.add(layout.joined(shard, own))

        def fill(new: Mapping[str, Tensor]) -> None:
            moved = {share.tensor: share.joined(new) for share in shares}
            for name, value in values.items():
                moved[name].copy_(value)
            velocity = self._velocity(shares, stored, new)
            momentum = Momentum(self._decay, velocity) if layout.velocities else None
            for name, rows, now in merge.moved(step, momentum):
                moved[name][rows] = now
            for share in shares:
                share.part_(moved[share.tensor], new)
                if layout.velocities:
                    share.part_(velocity[share.tensor], new, velocity_of)
            reached("stage", decision.version.round)

        target, shift = following(decision.version, decision.entry), merge.shift()
        most = sys.float_info.max
        part = (min(shift.spread, most), min(shift.size, most)) if shift else None
        self._disk.write(target, shard, history, fill, part)
        self._disk.release()

    def _velocity(
        self, shares: Iterable[Share], stored: Mapping[str, Tensor], new: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The velocities of a shard, where they are carried on into its next version; those of version 0 are
        zero."""
        if not self._layout.velocities:
            return {}
        velocity = {share.tensor: share.joined(new, velocity_of) for share in shares}
        for share in shares:
            before = velocity_of(share.pieces[0].name) in stored
            own = velocity[share.tensor]
            own.copy_(share.joined(stored, velocity_of)) if before else own.zero_()
        return velocity

    def clear(self) -> None:
        """Forget the contributions of a round that is over. Memory that was filled serves again; what is
        still being fetched, for nothing, is let go of."""
        filled = {t.data_ptr() for values in self._fetched.values() for t in values}
        self._spare = {}
        for buffer in self._lent:
            if buffer.data_ptr() in filled:
                self._spare.setdefault(buffer.numel(), []).append(buffer)
        self._lent, self._fetched, self._checks = [], {}, {}
        with self._lock:
            self._cut.clear()

    def _part(
        self, shard: int, whole: Contribution, handed: list[Tensor], kept: Mapping[str, Tensor]
    ) -> Contribution:
        """The part of a contribution that belongs to a shard, whose values are ``kept``."""
        if self._wire.narrow:
            own = self._layout.cut(self._layout.handed(shard, whole.selection), kept)
            handed = [self._wire.merged(part, base) for part, base in zip(handed, own, strict=True)]
        return self._layout.contribution(shard, whole, handed)

    def _buffer(self, size: int) -> Tensor:
        spare = self._spare.get(size)
        buffer = spare.pop() if spare else torch.empty(size, dtype=torch.uint8)
        self._lent.append(buffer)
        return buffer

    def _values(self, version: Version, shard: int, whose: int) -> Strip | None:
        key = (version, shard, whose)
        with self._lock:
            if key not in self._cut:
                selection = self._course.windows(version, whose)
                if selection is None or not self._disk.has(version, shard):
                    return None
                self._cut[key] = Strip(self.pulled(version, shard, selection))
                if len(self._cut) > _CACHED:
                    self._cut.popitem(last=False)
            return self._cut[key]

    def _shard(self, version: Version, shard: int, *, values_only: bool) -> Strip | None:
        if not self._disk.has(version, shard):
            return None
        tensors = self._disk.shard(version, shard)
        pieces = [piece.name for piece in self._layout.shards[shard]]
        return Strip(tensors[name] for name in (pieces if values_only else self._layout.specs(shard)))

    def _given(self, digest: str, shard: int) -> Strip | None:
        offered = self._offered
        if offered is None or offered[0] != digest:
            return None
        _, contribution, strips = offered
        self._asked += 1
        if self._asked == 2:
            reached("push", self._course.version.round)
        if shard not in strips:
            strips[shard] = Strip(self.handed(contribution, shard))
        return strips[shard]

    @torch.no_grad()
    def _check(self, offer: Offer, shard: int, own: Contribution) -> Check:
        axes = self._layout.axes(shard)
        values = self._disk.shard(offer.version, shard)
        total, count = 0.0, 0
        for name, part in own.values.items():
            if not torch.isfinite(part).all():
                return Check(offer.given.digest, 0.0, 0, "values that are not finite")
            change = take(values[name], axes.tensors[name], own.selection) - part
            total, count = total + float(squares(change)), count + change.numel()
        if not math.isfinite(total):
            return Check(offer.given.digest, 0.0, 0, "a change whose square is not finite")
        return Check(offer.given.digest, total, count)


def _text(text: bytes) -> Strip:
    return Strip([torch.frombuffer(bytearray(text), dtype=torch.uint8)])


def contribution_of(offer: Offer, selection: Selection) -> Contribution:
    """A contribution without its values."""
    given = offer.given
    return Contribution(given.participant, selection, {}, given.examples, offer.only)
