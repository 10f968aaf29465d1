"""Random changes to training images."""

import torch
import torch.nn.functional as F
from torch import Tensor

_PAD_SHARE = 8  # 4 pixels at a side of 32, as usual on CIFAR


def crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of ``(B, channels, H, W)`` is padded with zeros by an eighth of its side, cropped back to
    its size at a random place and, half of the time, flipped left to right. On the device where it lies; the
    random numbers are those of ``generator``, whatever the device."""
    device = x.device
    count, _, height, width = x.shape
    pad_y, pad_x = (max(1, round(side / _PAD_SHARE)) for side in (height, width))
    top = torch.randint(2 * pad_y + 1, (count, 1), generator=generator).to(device)
    left = torch.randint(2 * pad_x + 1, (count, 1), generator=generator).to(device)
    flip = torch.randint(2, (count, 1), generator=generator).to(device).bool()
    across = torch.arange(width, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(flip, across.flip(0), across)
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    image = torch.arange(count, device=device)
    # Indices on both sides of a slice put the channels last.
    cropped = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()
