"""Labelled images in a folder with one subfolder per class, as torchvision's ImageFolder reads them."""

from pathlib import Path

import numpy as np

from msfusion.data.config import Data
from msfusion.data.images import Encoded, decode_source
from msfusion.data.source import Source, visible
from msfusion.errors import UserError

_TEST = ("test", "validation", "valid", "val")
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_folder(config: Data, seed: int) -> Source:
    """The classes are the subfolders of ``train/`` if it exists, else of the folder, by name.

    The test images are those of ``test/`` (else validation/, valid/, val/) beside ``train/``, in the same
    subfolders; without it, a share of the training images."""
    if config.path is None:
        raise UserError("expected data.path to name a folder of images, got none: set it")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise UserError(f"expected a folder at data.path, got {config.path!r}, which is none: correct it")
    has_train = (root / "train").is_dir()
    train_root = root / "train" if has_train else root
    classes = _subfolders(train_root)
    if not classes:
        raise UserError(
            f"expected one subfolder per class in {train_root}, found none: put the images of each class "
            "into a folder of its own"
        )
    test_root = next((root / name for name in _TEST if has_train and (root / name).is_dir()), None)
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


def _subfolders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return [file for file in visible(folder, "*") if file.suffix.lower() in _SUFFIXES]
