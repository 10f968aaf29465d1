"""ResNet-18 for small images (He et al., arXiv 1512.03385), as usual on CIFAR: a 3x3 stem, no max pooling."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt, MinLen
from torch import nn

Norm = Literal["batch", "group"]

_GROUPS = 8


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Batch norm, or group norm with 8 groups (fewer where 8 does not divide ``channels``)."""
    if norm == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return nn.BatchNorm2d(channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), norm_layer(norm, channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Image ``(B, channels, H, W)`` -> logits ``(B, classes)``."""

    def __init__(
        self, classes: int, channels: int, width: int, blocks: tuple[int, ...], norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = norm_layer(norm, width)
        stages = []
        channels_in = width
        for stage, count in enumerate(blocks):
            channels_out = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels_in, channels_out, stride, norm))
                channels_in = channels_out
        self.blocks = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels_in, classes)
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)
        return self.head(self.dropout(x))  # type: ignore[no-any-return]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(
    classes: Annotated[int, Gt(0)] = 10,
    channels: Annotated[int, Gt(0)] = 3,
    width: Annotated[int, Gt(0)] = 64,
    blocks: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(1)] = (2, 2, 2, 2),
    norm: Norm = "batch",
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> ResNet:
    """``blocks[i]`` basic blocks of ``width * 2**i`` channels per stage, average pooling, a linear head.

    Every stage but the first halves the image. The defaults are ResNet-18 with 11.17 million parameters."""
    return ResNet(classes, channels, width, blocks, norm, dropout)
