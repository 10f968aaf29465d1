"""A multi-layer perceptron on the flattened example."""

from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn


class MLP(nn.Module):
    """``(B, ...)`` -> logits ``(B, classes)``."""

    def __init__(self, sizes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        *hidden, (last, classes) = pairwise(sizes)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(last, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = self.dropout(torch.relu(layer(x)))
        return self.head(x)  # type: ignore[no-any-return]


def mlp(
    classes: Annotated[int, Gt(0)] = 10,
    inputs: Annotated[int, Gt(0)] = 64,
    hidden: tuple[Annotated[int, Gt(0)], ...] = (64, 64),
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> MLP:
    """Linear layers of the sizes ``hidden``, ReLU and dropout between them, and a linear head."""
    return MLP((inputs, *hidden, classes), dropout)
