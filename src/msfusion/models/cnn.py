"""A small convolutional network for small images."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import nn


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU and, with ``pool``, 2x2 max pooling."""

    def __init__(self, channels_in: int, channels: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(torch.relu(self.norm(self.conv(x))))  # type: ignore[no-any-return]


class CNN(nn.Module):
    """Image ``(B, channels, H, W)`` -> logits ``(B, classes)``."""

    def __init__(
        self, classes: int, channels: int, width: int, depth: int, image: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        sizes = [channels] + [width * 2**i for i in range(depth)]
        # Pooling stops at 2x2: at 1x1 batch statistics of a small batch would rest on a handful of values.
        self.blocks = nn.Sequential(
            *(ConvBlock(sizes[i], sizes[i + 1], pool=image >= 2 ** (i + 2)) for i in range(depth))
        )
        self.hidden = nn.Linear(sizes[-1], hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)
        x = self.dropout(torch.relu(self.hidden(x)))
        return self.head(x)  # type: ignore[no-any-return]


def cnn(
    classes: Annotated[int, Gt(0)] = 10,
    channels: Annotated[int, Gt(0)] = 3,
    width: Annotated[int, Gt(0)] = 32,
    depth: Annotated[int, Gt(0)] = 3,
    image: Annotated[int, Gt(0)] = 32,
    hidden: Annotated[int, Gt(0)] = 128,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> CNN:
    """``depth`` convolution blocks of ``width``, ``2 * width``, ... channels for images of side ``image``,
    global average pooling, a hidden linear layer and a linear head."""
    return CNN(classes, channels, width, depth, image, hidden, dropout)
