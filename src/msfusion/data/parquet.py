"""Labelled images in parquet files: one column of encoded images, one of integer labels.

The layout is that of image datasets on the Hugging Face hub: an image is a struct with a field ``bytes`` (or
plain binary), and the files of a folder are called ``train*.parquet`` and ``test*.parquet``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from msfusion.data.config import Data
from msfusion.data.images import Encoded, decode_source
from msfusion.data.source import Source
from msfusion.errors import UserError

_TEST = ("test", "validation", "valid", "val")


def load_parquet(config: Data, seed: int) -> Source:
    """One file, or a folder with train*.parquet and, optionally, test*.parquet (else validation*.parquet).

    The number of classes is what the files say of themselves, else the largest training label plus one."""
    return _load(config, seed, classes=None)


def load_cifar10(config: Data, seed: int) -> Source:
    """CIFAR-10 from a folder with train.parquet and test.parquet."""
    return _load(config, seed, classes=10)


def _load(config: Data, seed: int, classes: int | None) -> Source:
    train_files, test_files = _files(config)
    train = _read(train_files, config)
    test = _read(test_files, config) if test_files else None
    classes = classes or _declared_classes(train_files[0], config) or int(train.labels.max(initial=0)) + 1
    return decode_source(train, test, classes, config, seed)


def _files(config: Data) -> tuple[list[Path], list[Path]]:
    """Training files and test files."""
    if config.path is None:
        raise UserError(
            f"expected data.path to name the parquet files of {config.name!r}, got none: set it to a file, "
            "or to a folder with train.parquet and test.parquet"
        )
    path = Path(config.path)
    if path.is_file():
        return [path], []
    train = sorted(path.rglob("train*.parquet"))
    if not train:
        found = "no train*.parquet in it" if path.is_dir() else "which does not exist"
        raise UserError(
            f"expected a parquet file, or a folder with train.parquet, at data.path, got {config.path!r}, "
            f"{found}: correct it"
        )
    return train, next((files for name in _TEST if (files := sorted(path.rglob(f"{name}*.parquet")))), [])


def _columns(path: Path, config: Data) -> tuple[str, str]:
    """Names of the image and the label column."""
    schema = _reading(path, pq.read_schema)
    return (
        _column(schema, config.image_column, _holds_images, path, "image_column", "encoded images"),
        _column(schema, config.label_column, _holds_labels, path, "label_column", "integer labels"),
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _column(
    schema: pa.Schema,
    name: str | None,
    holds: Callable[[pa.DataType], bool],
    path: Path,
    option: str,
    what: str,
) -> str:
    suitable: list[str] = [field.name for field in schema if holds(field.type)]
    if name is None and len(suitable) == 1:
        return suitable[0]
    if name is not None and name in suitable:
        return name
    found = f"{name!r}" if name else f"{len(suitable)} such columns"
    raise UserError(
        f"expected one column of {what} in {path}, got {found} among {', '.join(schema.names)}: "
        f"set data.{option}" + (f" to one of {', '.join(suitable)}" if suitable else " or take another file")
    )


def _read(paths: list[Path], config: Data) -> Encoded:
    tables = [_read_one(path, config) for path in paths]
    images = pa.chunked_array(
        [chunk for table in tables for chunk in table["image"].chunks], pa.large_binary()
    )
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    return Encoded(
        labels=np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int64),
        read=lambda row: images[row].as_py() or b"",
        where=lambda row: f"row {row} of {name}",
        name=name,
    )


def _read_one(path: Path, config: Data) -> pa.Table:
    """The columns ``image`` (encoded) and ``label`` of one file."""
    columns = list(_columns(path, config))
    table = _reading(path, lambda p: pq.read_table(p, columns=columns))
    image, label = (table[column] for column in columns)
    if label.null_count:
        raise UserError(f"expected a label in every row of {path}, got rows without: remove them")
    if pa.types.is_struct(image.type):
        image = pc.struct_field(image, "bytes")
    return pa.table({"image": image.cast(pa.large_binary()), "label": label})


def _reading(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"expected a complete parquet file at {path}, got one that cannot be read "
            f"({str(error).splitlines()[0]}): fetch it again"
        ) from error


def _declared_classes(path: Path, config: Data) -> int | None:
    """What Hugging Face's ``datasets`` wrote into the file, if it did."""
    _, label_column = _columns(path, config)
    metadata = _reading(path, pq.read_schema).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(label_column, {})
    return len(feature.get("names", ())) or feature.get("num_classes")
