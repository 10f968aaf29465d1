"""Tensors in safetensors files, read and written through memory maps, so that slices cost only what they are.

A checkpoint is one file, or a folder with ``model.safetensors`` or with shards and their index, as Hugging
Face writes them.
"""

import errno
import json
import math
import mmap
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from msfusion.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Spec:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def wide(self) -> "Spec":
        """The same in single precision at least."""
        return Spec(torch.promote_types(self.dtype, torch.float32), self.shape)

    @staticmethod
    def of(tensor: Tensor) -> "Spec":
        return Spec(tensor.dtype, tuple(tensor.shape))


@dataclass(frozen=True)
class _Place:
    spec: Spec
    file: int
    start: int


class Shards(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each a view of its file: nothing is read before it is looked at.

    writable: changes go to the file; otherwise the tensors must not be changed.
    ``UserError`` for a path that holds no checkpoint or one that cannot be read.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.files = _files(path)
        self._maps = [_mapped(file, writable) for file in self.files]
        self._writable = writable
        self._places: dict[str, _Place] = {}
        for number, file in enumerate(self.files):
            for name, spec, start in _header(file, self._maps[number]):
                self._places[name] = _Place(spec, number, start)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        count = math.prod(place.spec.shape)
        if not count:
            return torch.empty(place.spec.shape, dtype=place.spec.dtype)
        flat = torch.frombuffer(
            self._maps[place.file], dtype=place.spec.dtype, count=count, offset=place.start
        )
        return flat.view(place.spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def spec(self, name: str) -> Spec:
        """Type and shape, without touching the values."""
        return self._places[name].spec

    def release(self) -> None:
        """Take what has been looked at out of this process's memory; changes are kept."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def sync(self) -> None:
        """Return when all changes are on disk."""
        for mapped in self._maps:
            mapped.flush()


def create(folder: Path, specs: Mapping[str, Spec], shard_bytes: int = SHARD_BYTES) -> Shards:
    """A checkpoint of zeros in a new folder, open for writing: one file, or shards of at most about
    ``shard_bytes`` with an index. Takes no memory, and its disk at once; ``UserError`` where that is full."""
    folder.mkdir(parents=True)
    shards = _divided(specs, shard_bytes)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    for name, own in zip(names, shards, strict=True):
        create_file(folder / name, own)
    if len(shards) > 1:
        table = {tensor: name for name, own in zip(names, shards, strict=True) for tensor in own}
        total = sum(spec.bytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": table}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    return Shards(folder, writable=True)


def scratch(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, mmap.mmap | None]:
    """A tensor of zeros in a file without a name, which vanishes with it, and the map behind it;
    ``UserError`` where the disk is full."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype), None
    with TemporaryFile(dir=folder) as file:
        extend(file.fileno(), size, folder)
        mapped = mmap.mmap(file.fileno(), size)
    return torch.frombuffer(mapped, dtype=dtype).view(shape), mapped


def loaded(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in memory. What is read again and again is read here: safetensors 0.8 keeps
    64 bytes for each tensor, every time, for as long as the process lives."""
    return {name: value.clone() for name, value in Shards(path).items()}


def sync(path: Path) -> None:
    """Return when a file, or the list of files in a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(draft: Path, path: Path) -> None:
    """Put a file that is written into the place of another, which may exist; a crash at any moment leaves the
    old one or the new one."""
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / INDEX).is_file():
        try:
            names = json.loads((path / INDEX).read_text())["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"expected an index of shards in {path / INDEX}, cannot read it: {error}"
            ) from None
        files = [path / name for name in dict.fromkeys(names)]
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(
                f"expected the shard {missing[0]} in {path}, found none: fetch the whole checkpoint"
            )
        return files
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    raise UserError(f"expected a safetensors file, or a folder with {SINGLE} or {INDEX}, got {path}")


def _mapped(file: Path, writable: bool) -> mmap.mmap:
    try:
        with file.open("r+b" if writable else "rb") as opened:
            # A private map, not a read-only one: torch warns of memory that it cannot write to.
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected {file} to be a safetensors file, but it cannot be opened: {error}"
        ) from None


def _header(file: Path, mapped: mmap.mmap) -> Iterator[tuple[str, Spec, int]]:
    """(name, spec, first byte) of every tensor in a file."""
    length = int.from_bytes(mapped[:8], "little")
    try:
        table: dict[str, Any] = json.loads(mapped[8 : 8 + length])
        for name, entry in table.items():
            if name == "__metadata__":
                continue
            spec = Spec(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
            first, last = entry["data_offsets"]
            if last - first != spec.bytes or 8 + length + last > len(mapped):
                raise ValueError(f"{name} ends at byte {8 + length + last} of {len(mapped)}")
            yield name, spec, 8 + length + first
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected {file} to be a whole safetensors file, but it is not: {error}") from None


def _divided(specs: Mapping[str, Spec], shard_bytes: int) -> list[dict[str, Spec]]:
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.bytes
    return shards


def is_checkpoint_file(name: str) -> bool:
    """Whether ``create`` may have given a file this name."""
    return name in (SINGLE, INDEX) or re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name) is not None


def _shard_name(number: int, shards: int) -> str:
    return f"model-{number + 1:05d}-of-{shards:05d}.safetensors"


def create_file(path: Path, specs: Mapping[str, Spec]) -> None:
    """Header and zeros; the widest types come first, so that every tensor lies on a multiple of its own.
    ``UserError``, and no file, where the disk is full."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize):
        if spec.dtype not in _NAMES:
            raise UserError(
                f"expected tensors of a type that safetensors has, got {name} of {spec.dtype}: take another"
            )
        offsets = [end, end + spec.bytes]
        table[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
        end += spec.bytes
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    size = 8 + len(header) + end
    with path.open("wb") as file:
        try:
            extend(file.fileno(), size, path)
        except UserError:
            path.unlink()
            raise
        file.write(len(header).to_bytes(8, "little") + header)


@contextmanager
def room_for(size: int, path: Path) -> Iterator[None]:
    """Where the disk has no room for ``size`` bytes at a path, or no file may be as long, ``UserError`` says
    how many are free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(path if path.is_dir() else path.parent).free
        raise UserError(
            f"expected room for {size} bytes at {path}, got {error.strerror!r} with {free} bytes free: make "
            "room, or name a folder on another disk (TMPDIR for temporary files)"
        ) from None


def extend(descriptor: int, size: int, path: Path) -> None:
    """Make a file at a path, or in a folder, so many bytes long, none of them a hole: where a map is written
    to and the disk has no room for that, the system kills the process. ``UserError`` as for ``room_for``."""
    with room_for(size, path):
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
