"""The digits that scikit-learn brings: 1797 grey images of 8x8, ten classes."""

from importlib.metadata import distribution

import numpy as np
import numpy.typing as npt

from msfusion.data.config import Data
from msfusion.data.resize import resize
from msfusion.data.source import Source, Split, choose, stratified_split


def load_digits(config: Data, seed: int) -> Source:
    """A stratified split, 80/20 unless ``config.test_share`` says otherwise."""
    table = bundled()
    everything = Split(table[:, :64].astype(np.uint8).reshape(-1, 8, 8, 1), table[:, 64])
    train, test = stratified_split(everything.labels, config.test_share or 0.2, seed)
    train = train[choose(len(train), config.limit, seed, "train")]
    test = test[choose(len(test), config.test_limit, seed, "test")]
    if config.image:
        everything = Split(resize(everything.images, config.image), everything.labels)
    return Source(everything.take(train), everything.take(test), classes=10)


def bundled() -> npt.NDArray[np.int64]:
    """Rows of 64 pixels, 0 to 16, and the label, from the file that scikit-learn's ``load_digits`` reads.
    Importing scikit-learn for it would take a second."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    return np.loadtxt(str(path), np.int64, delimiter=",")
