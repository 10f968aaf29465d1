"""Labelled images in parquet files: one column of encoded images, one of integer labels or of names.

The layout is that of image datasets on the Hugging Face hub: an image is a struct with a field ``bytes`` (or
plain binary), and the files of a folder are called ``train*.parquet`` and ``test*.parquet``."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from msfusion.data.config import Data
from msfusion.data.images import Encoded, decode_source
from msfusion.data.source import Indices, Source, visible
from msfusion.errors import UserError

_TEST = ("test", "validation", "valid", "val")


def load_parquet(config: Data, seed: int) -> Source:
    """One file, or a folder with train*.parquet and, optionally, test*.parquet (else validation*.parquet).

    The number of classes is what the files say of themselves, else the largest training label plus one. Names
    are numbered in the order of the alphabet."""
    return _load(config, seed, classes=None)


def load_cifar10(config: Data, seed: int) -> Source:
    """CIFAR-10 from a folder with train.parquet and test.parquet."""
    return _load(config, seed, classes=10)


def _load(config: Data, seed: int, classes: int | None) -> Source:
    train_files, test_files = _files(config)
    names = _names(train_files, config)
    declared, count = _declared(train_files[0], config)
    train = _read(train_files, config, names)
    test = _read(test_files, config, names) if test_files else None
    classes = classes or len(declared) or count or len(names or ()) or _counted(train)
    return decode_source(train, test, classes, config, seed, names or declared)


def _counted(train: Encoded) -> int:
    """The number of classes that integer labels say."""
    classes = int(train.labels.max(initial=0)) + 1
    if 2 * len(found := np.unique(train.labels)) < classes:
        warnings.warn(
            f"the model gets {classes:,} classes, as the largest label in {train.name} is {classes - 1}, and "
            f"only {len(found):,} of them have an example here: number classes from 0",
            stacklevel=2,
        )
    return classes


def _files(config: Data) -> tuple[list[Path], list[Path]]:
    """Training files and test files."""
    if config.path is None:
        raise UserError(
            f"expected data.path to name the parquet files of {config.name!r}, got none: set it to a file, "
            "or to a folder with train.parquet and test.parquet"
        )
    path = Path(config.path).expanduser()
    if path.is_file():
        return [path], []
    train = visible(path, "train*.parquet")
    if not train:
        found = "no train*.parquet in it" if path.is_dir() else "which does not exist"
        raise UserError(
            f"expected a parquet file, or a folder with train.parquet, at data.path, got {config.path!r}, "
            f"{found}: correct it"
        )
    return train, next((files for name in _TEST if (files := visible(path, f"{name}*.parquet"))), [])


def _columns(path: Path, config: Data) -> tuple[str, str]:
    """Names of the image and the label column."""
    schema = _reading(path, pq.read_schema)
    chosen = config.label_column
    if chosen is None and any(field.name == "label" and _holds_labels(field.type) for field in schema):
        chosen = "label"
    numbered = any(pa.types.is_integer(field.type) for field in schema)
    holds = pa.types.is_integer if numbered and chosen is None else _holds_labels
    return (
        _column(schema, config.image_column, _holds_images, path, "image_column", "encoded images"),
        _column(schema, chosen, holds, path, "label_column", "labels (integers or names)"),
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind)) or _holds_names(kind)


def _holds_names(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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
    columns = ", ".join(f"{field.name} ({_kind(field.type)})" for field in schema)
    todo = f"set data.{option} to one of {', '.join(suitable)}" if suitable else "convert one of them"
    raise UserError(f"expected one column of {what} in {path}, got {found} among {columns}: {todo}")


def _kind(type: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(type) else str(type)


def _names(paths: list[Path], config: Data) -> list[str] | None:
    """The names among the training labels, sorted; None where those of the first file are numbers."""
    found: set[str] = set()
    for path in paths:
        _, column = _columns(path, config)
        label = _reading(path, partial(pq.read_table, columns=[column]))[column]
        if path == paths[0] and not _holds_names(label.type):
            return None
        _check_kind(label, True, path)
        found.update(label.cast(pa.string()).drop_null().unique().to_pylist())
    return sorted(found)


def _check_kind(label: pa.ChunkedArray, named: bool, path: Path) -> None:
    if _holds_names(label.type) != named:
        kinds = ("integer labels", "names")
        raise UserError(
            f"expected {kinds[named]} in {path}, as in the first training file, got {kinds[not named]}: "
            "take labels of one kind"
        )


def _numbers(label: pa.ChunkedArray, names: list[str] | None, path: Path) -> Indices:
    """Labels as numbers. UserError for those of another kind, and for a name that ``names`` lack."""
    _check_kind(label, names is not None, path)
    if names is None:
        if (largest := pc.max(label).as_py() or 0) > np.iinfo(np.int64).max:
            raise UserError(
                f"expected labels of at most 63 bits in {path}, got {largest}: number the classes from 0"
            )
        return label.to_numpy().astype(np.int64)  # type: ignore[no-any-return]
    text = label.cast(pa.string())
    numbers = pc.index_in(text, value_set=pa.array(names, pa.string()))
    if numbers.null_count:
        unknown = text.filter(numbers.is_null())[0].as_py()
        raise UserError(
            f"expected the labels {', '.join(names)} of the training files in {path}, got {unknown!r}: "
            "mend the labels"
        )
    return numbers.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _read(paths: list[Path], config: Data, names: list[str] | None) -> Encoded:
    tables = [_read_one(path, config) for path in paths]
    images = pa.chunked_array(
        [chunk for table in tables for chunk in table["image"].chunks], pa.large_binary()
    )
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    return Encoded(
        labels=np.concatenate(
            [_numbers(table["label"], names, path) for table, path in zip(tables, paths, strict=True)]
        ),
        read=lambda row: images[row].as_py() or b"",
        where=lambda row: f"row {row} of {name}",
        name=name,
    )


def _read_one(path: Path, config: Data) -> pa.Table:
    """The columns ``image`` (encoded) and ``label`` of one file."""
    columns = list(_columns(path, config))
    table = _reading(path, partial(pq.read_table, columns=columns))
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


def _declared(path: Path, config: Data) -> tuple[list[str], int | None]:
    """Names and number of the classes, where Hugging Face's ``datasets`` wrote them into the file.

    They are a hint: what cannot be understood counts as not written."""
    _, label_column = _columns(path, config)
    metadata = _reading(path, pq.read_schema).metadata or {}
    try:
        label = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][label_column]
        names, count = label.get("names"), label.get("num_classes")
    except (ValueError, KeyError, TypeError, AttributeError):
        return [], None
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if named else [], count if isinstance(count, int) and count > 0 else None
