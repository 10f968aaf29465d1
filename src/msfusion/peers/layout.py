"""Shards of the full model: which rows of which tensors lie together, and what of them a window holds."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from msfusion.core.axes import Axis, AxisMap, Dim, Fixed, Selection, Units, count, positions, runs_of
from msfusion.core.merge import Contribution, take
from msfusion.core.twins import Twins
from msfusion.learn.shards import Spec

SHARDS_PER_PARTICIPANT = 4  # so that bytes are spread about evenly over the homes
SHARD_BYTES = 16_000_000  # at most about so many in a shard


@dataclass(frozen=True)
class Piece:
    """Rows ``start .. stop - 1`` of a tensor; a tensor without dimensions has one row."""

    tensor: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """The piece as a tensor of its own, in a shard's file and its merge."""
        return f"{self.tensor}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Part:
    """What a window holds of a piece.

    selection: the window with the piece's rows as an axis of their own.
    rows: where these rows lie in the sub-model's tensor, one behind the other.
    """

    piece: Piece
    selection: Selection
    rows: slice


@dataclass(frozen=True)
class Share:
    """All pieces of a tensor in one shard, in order: several where rows that lie apart are twins."""

    tensor: str
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    @property
    def starts(self) -> list[int]:
        """Where each piece begins in the joined tensor."""
        return [0, *accumulate(piece.rows for piece in self.pieces[:-1])]

    def joined(self, tensors: Mapping[str, Tensor], name: Callable[[str], str] = str) -> Tensor:
        """The pieces as one tensor: a single one itself, several as a copy.

        name: of a piece -> that in ``tensors``.
        """
        each = [tensors[name(piece.name)] for piece in self.pieces]
        return each[0] if len(each) == 1 else torch.cat(each)

    def part_(self, joined: Tensor, tensors: Mapping[str, Tensor], name: Callable[[str], str] = str) -> None:
        """Put a joined tensor back."""
        if len(self.pieces) > 1:
            for piece, own in zip(
                self.pieces, torch.split(joined, [p.rows for p in self.pieces]), strict=True
            ):
                tensors[name(piece.name)].copy_(own)


class Layout:
    """The shards of a model, alike for every peer.

    tensors: parameter -> type and shape, in the order in which they are divided.
    shards: about how many; a row is never cut, so there may be fewer.
    velocities: whether a shard's file also has those of server momentum.
    twins: units that share their changes; they lie in one shard.
    frozen: parameters that nobody trains, so that nobody hands them over.
    """

    def __init__(
        self,
        axes: AxisMap,
        tensors: Mapping[str, Spec],
        shards: int,
        *,
        velocities: bool = False,
        twins: Twins | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        self.tensors = dict(tensors)
        self._frozen = frozenset(frozen)
        self.velocities = velocities
        self._axes, self._twins = axes, twins
        self.shards = _divided(self.tensors, shards, twins)

    def __len__(self) -> int:
        return len(self.shards)

    def specs(self, shard: int) -> dict[str, Spec]:
        """The tensors of a shard's file."""
        values = {
            piece.name: Spec(spec.dtype, (piece.rows, *spec.shape[1:]))
            for piece in self.shards[shard]
            for spec in [self.tensors[piece.tensor]]
        }
        velocities = {velocity_of(name): spec.wide for name, spec in values.items() if self.velocities}
        return {**values, **velocities}

    def axes(self, shard: int) -> AxisMap:
        """The pieces of a shard as tensors that follow axes."""
        return AxisMap({piece.name: self._dims_of(piece) for piece in self.shards[shard]}, {})

    def shares(self, shard: int) -> list[Share]:
        """What lies in a shard, by tensors."""
        of: dict[str, list[Piece]] = {}
        for piece in self.shards[shard]:
            of.setdefault(piece.tensor, []).append(piece)
        return [Share(tensor, tuple(pieces)) for tensor, pieces in of.items()]

    def joined_axes(self, shard: int) -> AxisMap:
        """The shares of a shard as tensors, under the names of the model's, that follow axes."""
        dims = {
            share.tensor: self._dims(share.tensor, share.tensor, share.rows) for share in self.shares(shard)
        }
        return AxisMap(dims, {})

    def twins(self, shard: int) -> Twins | None:
        """Units that share their changes, in the shares of a shard."""
        if self._twins is None:
            return None
        return self._twins.among(
            {
                share.tensor: (share.tensor, torch.cat([torch.arange(p.start, p.stop) for p in share.pieces]))
                for share in self.shares(shard)
            }
        )

    def joined(self, shard: int, own: Contribution) -> Contribution:
        """The part of a contribution that belongs to a shard, by shares instead of pieces."""
        selection, values, only = dict(own.selection), {}, {}
        for share in self.shares(shard):
            held = [
                (piece, start)
                for piece, start in zip(share.pieces, share.starts, strict=True)
                if piece.name in own.values
            ]
            if not held:
                continue
            each = [own.values[piece.name] for piece, _ in held]
            values[share.tensor] = each[0] if len(each) == 1 else torch.cat(each)
            if self._axes.tensors[share.tensor]:
                selection[share.tensor] = tuple(
                    (start + a, start + b) for piece, start in held for a, b in own.selection[piece.name]
                )
            if (first := held[0][0].name) in own.only:
                only[share.tensor] = own.only[first]
        return Contribution(own.participant, selection, values, own.weight, only)

    def parts(self, shard: int, selection: Selection) -> list[Part]:
        """What a window holds of a shard; pieces of which it holds no row are left out."""
        return [part for piece in self.shards[shard] if (part := self._part(piece, selection))]

    def handed(self, shard: int, selection: Selection) -> list[Part]:
        """The same of trained parameters alone: what a contribution holds of a shard."""
        return [part for part in self.parts(shard, selection) if part.piece.tensor not in self._frozen]

    def cut(self, parts: Iterable[Part], tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Copies of parts of a shard's tensors."""
        return [take(tensors[part.piece.name], self._dims_of(part.piece), part.selection) for part in parts]

    def shapes(self, parts: Iterable[Part]) -> list[Spec]:
        """Types and shapes of what ``cut`` gives."""
        return [
            Spec(
                self.tensors[part.piece.tensor].dtype,
                tuple(count(positions(d, part.selection)) for d in dims),
            )
            for part in parts
            for dims in [self._dims_of(part.piece)]
        ]

    def contribution(self, shard: int, whole: Contribution, values: Sequence[Tensor]) -> Contribution:
        """The part of a contribution that belongs to a shard.

        whole: of which only who, window, weight and what counts are looked at.
        values: of the parts that are ``handed``.
        """
        selection, own, only = dict(whole.selection), {}, {}
        for part, value in zip(self.handed(shard, whole.selection), values, strict=True):
            piece = part.piece
            if piece.tensor in whole.only:
                dimension, kept = whole.only[piece.tensor]
                kept = kept if dimension else _within(kept, piece.start, piece.stop)
                if not kept:
                    continue
                only[piece.name] = (dimension, kept)
            selection.update(part.selection)
            own[piece.name] = value
        return Contribution(whole.participant, selection, own, whole.weight, only)

    def _dims_of(self, piece: Piece) -> tuple[Dim, ...]:
        return self._dims(piece.tensor, piece.name, piece.rows)

    def _dims(self, tensor: str, name: str, rows: int) -> tuple[Dim, ...]:
        """Those of some rows of a tensor, which follow an axis of their own."""
        dims = self._axes.tensors[tensor]
        return (Axis(name, rows), *dims[1:]) if dims else (Fixed(1),)

    def _part(self, piece: Piece, selection: Selection) -> Part | None:
        dims = self._axes.tensors[piece.tensor]
        if not dims:
            return Part(piece, selection, slice(0, 1))
        runs = positions(dims[0], selection)
        own = _within(runs, piece.start, piece.stop)
        before = count(_within(runs, 0, piece.start))
        if not own:
            return None
        return Part(piece, {**selection, piece.name: own}, slice(before, before + count(own)))


def velocity_of(name: str) -> str:
    """The velocity of a piece as a tensor of its own, in a shard's file."""
    return f"velocity/{name}"


def shards_for(tensors: Mapping[str, Spec], participants: int) -> int:
    """How many shards a model is divided into."""
    total = sum(spec.bytes for spec in tensors.values())
    return max(SHARDS_PER_PARTICIPANT * participants, -(-total // SHARD_BYTES))


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """Rows of a sub-model's tensor, as a view."""
    return tensor.reshape(1) if not tensor.ndim else tensor[rows]


def _within(runs: Units, start: int, stop: int) -> Units:
    """The part of the runs inside ``start .. stop - 1``, counted from ``start``."""
    return tuple(
        (max(a, start) - start, min(b, stop) - start) for a, b in runs if max(a, start) < min(b, stop)
    )


def _divided(tensors: Mapping[str, Spec], shards: int, twins: Twins | None) -> tuple[tuple[Piece, ...], ...]:
    """Pieces in order, in shards of about equal bytes."""
    total = sum(spec.bytes for spec in tensors.values())
    out: list[list[Piece]] = [[] for _ in range(shards)]
    done = 0
    for name, spec in tensors.items():
        kinds = twins.of_rows(name) if twins else None
        for shard, piece in _pieces(name, spec, shards, total, done, kinds):
            out[shard].append(piece)
        done += spec.bytes
    return tuple(tuple(pieces) for pieces in out if pieces)


def _pieces(
    name: str, spec: Spec, shards: int, total: int, done: int, kinds: Tensor | None
) -> Iterator[tuple[int, Piece]]:
    """The pieces of a tensor with their shards; ``done`` bytes lie before it."""
    rows = spec.shape[0] if spec.shape else 1
    each = spec.bytes // max(1, rows)
    if not each:
        return
    of = torch.arange(rows) if kinds is None else kinds
    sizes = torch.bincount(of) * each
    middles = done + sizes.cumsum(0) - sizes + sizes // 2
    places = (middles * shards // total)[of]
    for shard in torch.unique(places).tolist():
        for start, stop in runs_of(places.eq(shard).nonzero().flatten().tolist()):
            yield shard, Piece(name, start, stop)
