"""Labelled images in a folder with one subfolder per class, much as torchvision's ImageFolder reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msfusion.data.config import Data
from msfusion.data.images import Encoded, decode_source
from msfusion.data.source import Source, visible
from msfusion.errors import UserError

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "validation", "valid", "val")
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_folder(config: Data, seed: int) -> Source:
    """The classes are the subfolders of ``train/`` (``training/``) if it exists, else of the folder, by name.

    The test images are those of ``test/`` (else testing/, validation/, valid/, val/) beside ``train/``, in
    the same subfolders; without it, a share of the training images. Such names count in any case."""
    if config.path is None:
        raise UserError("expected data.path to name a folder of images, got none: set it")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise UserError(f"expected a folder at data.path, got {config.path!r}, which is none: correct it")
    split = _named(root, _TRAIN)
    train_root = split or root
    classes = _subfolders(train_root)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise UserError(
            f"expected one subfolder per class in {train_root}, of two classes or more, found {found}: put "
            "the images of each class into a folder of its own, or set data.path to where such folders are"
        )
    test_root = _named(root, _TEST) if split else None
    test = _read(test_root, classes) if test_root else None
    return decode_source(_read(train_root, classes), test, len(classes), config, seed, classes)


def _read(root: Path, classes: list[str]) -> Encoded:
    unknown = sorted(set(_subfolders(root)) - set(classes))
    if unknown:
        raise UserError(
            f"expected the classes {', '.join(classes)} in {root}, got {unknown[0]!r}: remove it or add "
            "training images of it"
        )
    files = [(file, label) for label, name in enumerate(classes) for file in _images(root / name)]
    if not files:
        raise UserError(f"expected images in the subfolders of {root}, found none: add some")
    return Encoded(
        labels=np.array([label for _, label in files], dtype=np.int64),
        read=lambda row: files[row][0].read_bytes(),
        where=lambda row: str(files[row][0]),
        name=str(root),
    )


def _named(root: Path, names: Sequence[str]) -> Path | None:
    """The subfolder with the first of these names that there is, in lower case or not. One without subfolders
    of its own may be a class (trains), unless all beside it have such names."""
    all_names = _subfolders(root)
    splits = all(name.lower() in (*_TRAIN, *_TEST) for name in all_names)
    found = {name.lower(): root / name for name in reversed(all_names) if splits or _subfolders(root / name)}
    return next((found[name] for name in names if name in found), None)


def _subfolders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Those of a class. UserError where all are further down: then its subfolders may well be the classes."""
    found = [file for file in visible(folder, "*") if file.suffix.lower() in _SUFFIXES]
    if found and not any(file.parent == folder for file in found):
        raise UserError(
            f"expected the images of one class in {folder}, found them in its subfolders alone, such as "
            f"{found[0].parent.name!r}: set data.path to the folder whose subfolders are the classes"
        )
    return found
