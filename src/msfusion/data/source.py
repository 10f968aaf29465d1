"""Labelled images as they come from a source, before they are divided."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from msfusion.core.seeds import derive
from msfusion.errors import UserError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: npt.NDArray[np.uint8]  # (examples, height, width, channels)
    labels: Indices

    def take(self, rows: Indices) -> "Split":
        return replace(self, images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True)
class Source:
    """The training and the test split of one source.

    names: of the classes, where they have any.
    """

    train: Split
    test: Split
    classes: int
    names: tuple[str, ...] = ()


def visible(folder: Path, pattern: str) -> list[Path]:
    """Files in a folder and below it, but for hidden ones and those in hidden folders, sorted."""
    found = (file for file in folder.rglob(pattern) if file.is_file())
    return sorted(f for f in found if not any(p.startswith(".") for p in f.relative_to(folder).parts))


def choose(count: int, limit: int | None, seed: int, purpose: str) -> Indices:
    """``limit`` of ``count`` rows, chosen by the seed, ascending; all where ``limit`` is None or larger."""
    rows = np.arange(count)
    if limit is None or limit >= count:
        return rows
    return np.sort(np.random.default_rng(derive(seed, "limit", purpose)).choice(rows, limit, replace=False))


def stratified_split(labels: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Training and test rows, ascending; ``share`` of each class is for testing, rounded."""
    rng = np.random.default_rng(derive(seed, "test split"))
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test[rows[: round(share * len(rows))]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def check_labels(labels: Indices, classes: int, where: str) -> None:
    """``UserError`` for the first label outside ``0 .. classes - 1``."""
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"expected labels from 0 to {classes - 1} in {where}, got {labels[row]} in row {row}: "
            "mend the labels"
        )
