"""Encoded images (PNG, JPEG, ...) to arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from msfusion.data.config import Data
from msfusion.data.source import Indices, Source, Split, check_labels, choose, stratified_split
from msfusion.errors import UserError

TEST_SHARE = 0.2
"""Of the examples, where there is no test split and the configuration names no share."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True)
class Encoded:
    """Labelled images that are read and decoded when they are needed."""

    labels: Indices
    read: Callable[[int], bytes]  # row -> encoded image
    where: Callable[[int], str]  # row -> its place, for messages
    name: str  # of the whole, for messages


def decode_source(
    train: Encoded, test: Encoded | None, classes: int, config: Data, seed: int, names: Sequence[str] = ()
) -> Source:
    """Decodes the rows that the limits leave; without a test split, a share of the training rows is tested.

    All images are grey where all of those rows are, else RGB, and take the size of the first training image,
    or the size ``config.image``. ``UserError`` for labels outside the classes, undecodable images and unequal
    sizes.

    names: of the classes, where they have any.
    """
    check_labels(train.labels, classes, train.name)
    train_rows, test_rows = np.arange(len(train.labels)), np.arange(0)
    if test is None:
        train_rows, test_rows = stratified_split(train.labels, config.test_share or TEST_SHARE, seed)
        test = train
    else:
        check_labels(test.labels, classes, test.name)
        test_rows = np.arange(len(test.labels))
    train_rows = train_rows[choose(len(train_rows), config.limit, seed, "train")]
    test_rows = test_rows[choose(len(test_rows), config.test_limit, seed, "test")]
    if not len(train_rows):
        raise UserError(f"expected training images in {train.name}, found none: add some")
    size = (config.image, config.image) if config.image else _open(train, int(train_rows[0])).size
    # Of the test rows as well: the seed may decide which of the images are tested.
    grey = _all_grey(train, train_rows) and _all_grey(test, test_rows)
    mode = "L" if grey else "RGB"

    def decode(encoded: Encoded, rows: Indices) -> Split:
        return Split(_decode(encoded, rows, mode, size, config.image is not None), encoded.labels[rows])

    return Source(decode(train, train_rows), decode(test, test_rows), classes, tuple(names))


def _all_grey(encoded: Encoded, rows: Indices) -> bool:
    """Reads no more than the headers, and those only up to the first image that has colours."""
    return all(_open(encoded, row).mode in _GREY_MODES for row in rows.tolist())


def _decode(
    encoded: Encoded, rows: Indices, mode: str, size: tuple[int, int], resize: bool
) -> npt.NDArray[np.uint8]:
    """uint8 ``(rows, height, width, channels)``."""
    # One by one: for small images threads only wait for the interpreter.
    width, height = size
    images = np.empty((len(rows), height, width, 1 if mode == "L" else 3), dtype=np.uint8)
    for place, row in enumerate(rows.tolist()):
        image = _open(encoded, row, mode)
        if image.size != size:
            if not resize:
                raise UserError(
                    f"expected images of {width}x{height}, the size of the first, got {image.width}x"
                    f"{image.height} in {encoded.where(row)}: set data.image to resize all"
                )
            image = image.resize(size, Image.Resampling.BILINEAR)
        images[place] = np.asarray(image).reshape(images.shape[1:])
    return images


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """A grey image of 16 bits as one of 8, which Pillow would cut off at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8), "L")
    if image.mode in ("I", "F"):
        raise UserError(
            f"expected an image of at most 16 bits per channel in {where}, got one of 32: convert it, as its "
            "range is not known"
        )
    return image


def _open(encoded: Encoded, row: int, mode: str | None = None) -> Image.Image:
    """Decoded in a mode; without one only the header is read."""
    try:
        image = Image.open(BytesIO(encoded.read(row)))
        return _eight_bits(image, encoded.where(row)).convert(mode) if mode else image
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow raises errors of many kinds for broken files
        why = "of no kind that is known" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"expected an image in {encoded.where(row)}, got bytes that do not decode ({why}): "
            "mend or remove it"
        ) from error
