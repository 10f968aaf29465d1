"""What a model is fed: the shape and type of one example, and example inputs made from them."""

from dataclasses import dataclass

import torch

_EXAMPLE_SEED = 0
_EXAMPLE_BATCH = 2


@dataclass(frozen=True)
class InputSpec:
    """One example without the batch: an image ``(channels, height, width)``, a vector or a token sequence."""

    shape: tuple[int, ...]  # of one example
    dtype: torch.dtype  # float32 for images and vectors, int64 for tokens
    classes: int  # number of classes, or the vocabulary size for tokens

    @property
    def is_image(self) -> bool:
        """True for a floating-point ``(channels, height, width)``."""
        return self.dtype.is_floating_point and len(self.shape) == 3

    @property
    def is_text(self) -> bool:
        """True for a sequence of token numbers."""
        return not self.dtype.is_floating_point and len(self.shape) == 1


def example(inputs: InputSpec) -> torch.Tensor:
    """A batch of 2, always the same: normal floats, or integers below ``classes``. Leaves the global
    generator alone."""
    generator = torch.Generator().manual_seed(_EXAMPLE_SEED)
    shape = (_EXAMPLE_BATCH, *inputs.shape)
    if inputs.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=inputs.dtype)
    return torch.randint(inputs.classes, shape, generator=generator, dtype=inputs.dtype)
