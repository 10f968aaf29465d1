"""The digits that scikit-learn brings: 1797 grey images of 8x8, ten classes."""

import numpy as np

from msfusion.data.config import Data
from msfusion.data.resize import resize
from msfusion.data.source import Source, Split, choose, stratified_split


def load_digits(config: Data, seed: int) -> Source:
    """A stratified split, 80/20 unless ``config.test_share`` says otherwise."""
    from sklearn import datasets  # takes a second to import

    bundled = datasets.load_digits()
    images = bundled.images.astype(np.uint8)[..., None]  # 0 .. 16, exact
    everything = Split(images, bundled.target.astype(np.int64))
    train, test = stratified_split(everything.labels, config.test_share or 0.2, seed)
    train = train[choose(len(train), config.limit, seed, "train")]
    test = test[choose(len(test), config.test_limit, seed, "test")]
    if config.image:
        everything = Split(resize(images, config.image), everything.labels)
    return Source(everything.take(train), everything.take(test), classes=10)
