"""Smaller or larger images, the same on every machine."""

import numpy as np
import numpy.typing as npt
from PIL import Image


def resize(images: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Every image of ``(N, H, W, channels)`` at ``side x side``, bilinear and antialiased."""
    single = images.shape[-1] == 1
    pictures = (Image.fromarray(image[..., 0] if single else image) for image in images)
    # Pillow computes in integers: no result depends on the processor.
    resized = [np.asarray(p.resize((side, side), Image.Resampling.BILINEAR)) for p in pictures]
    return np.stack(resized).reshape(len(images), side, side, -1)
