"""A decoder-only language model in the manner of GPT-2: pre-norm blocks, learned positions."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from msfusion.models.transformer import Block, initialise


class GPT(nn.Module):
    """Token numbers ``(B, T)``, int64, ``T <= block`` -> logits of the next token ``(B, T, vocabulary)``."""

    def __init__(
        self, vocabulary: int, block: int, layers: int, heads: int, embed: int, dropout: float, tie: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, embed)
        self.positions = nn.Embedding(block, embed)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(embed, heads, dropout, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(embed)
        self.head = nn.Linear(embed, vocabulary, bias=False)
        if tie:
            self.head.weight = self.tokens.weight
        initialise(self)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        _, length = idx.shape
        positions = torch.arange(length, device=idx.device)
        x = self.dropout(self.tokens(idx) + self.positions(positions))
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def gpt(
    vocabulary: Annotated[int, Gt(0)] = 65,
    block: Annotated[int, Gt(0)] = 256,
    layers: Annotated[int, Gt(0)] = 6,
    heads: Annotated[int, Gt(0)] = 6,
    embed: Annotated[int, Gt(0)] = 384,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    tie: bool = False,
) -> GPT:
    """``layers`` transformer blocks on sequences of at most ``block`` tokens; ``tie`` shares the token
    embedding with the head. ``embed`` must be a multiple of ``heads`` (``UserError``)."""
    return GPT(vocabulary, block, layers, heads, embed, dropout, tie)
