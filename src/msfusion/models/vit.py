"""A vision transformer (Dosovitskiy et al., arXiv 2010.11929) for small images, with mean pooling."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from msfusion.errors import UserError
from msfusion.models.transformer import Block, initialise


class ViT(nn.Module):
    """Image ``(B, channels, image, image)`` -> logits ``(B, classes)``."""

    def __init__(
        self,
        classes: int,
        channels: int,
        image: int,
        patch: int,
        layers: int,
        heads: int,
        embed: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, embed, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, (image // patch) ** 2, embed))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(embed, heads, dropout, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(embed)
        self.head = nn.Linear(embed, classes)
        initialise(self)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(self.dropout(x + self.positions))
        return self.head(self.norm(x).mean(dim=1))  # type: ignore[no-any-return]


def vit(
    classes: Annotated[int, Gt(0)] = 10,
    channels: Annotated[int, Gt(0)] = 3,
    image: Annotated[int, Gt(0)] = 32,
    patch: Annotated[int, Gt(0)] = 4,
    layers: Annotated[int, Gt(0)] = 6,
    heads: Annotated[int, Gt(0)] = 6,
    embed: Annotated[int, Gt(0)] = 192,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> ViT:
    """``layers`` transformer blocks over the patches of an image of side ``image``; the mean over the patches
    goes to a linear head. ``image`` must be a multiple of ``patch``, ``embed`` of ``heads``."""
    if image % patch:
        raise UserError(
            f"expected image to be a multiple of patch, got image={image} and patch={patch}: "
            "choose a patch that divides the side of the images"
        )
    return ViT(classes, channels, image, patch, layers, heads, embed, dropout)
