"""The transformer block that the language model and the vision transformer share."""

import torch
import torch.nn.functional as F
from torch import nn

from msfusion.errors import UserError

_STD = 0.02  # of the initial weights, as in GPT-2


class Attention(nn.Module):
    """Multi-head self-attention ``(B, T, embed)`` -> ``(B, T, embed)``; one linear layer makes q, k and v."""

    def __init__(self, embed: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        if embed % heads:
            raise UserError(
                f"expected embed to be a multiple of heads, got embed={embed} and heads={heads}: "
                f"choose embed={embed // heads * heads or heads} or other heads"
            )
        self.head_dim = embed // heads
        self.dropout = dropout
        self.causal = causal
        self.qkv = nn.Linear(embed, 3 * embed)
        self.project = nn.Linear(embed, embed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        y = y.transpose(1, 2).flatten(2)
        return self.project(y)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them; the inner one is ``4 * embed`` wide."""

    def __init__(self, embed: int) -> None:
        super().__init__()
        self.expand = nn.Linear(embed, 4 * embed)
        self.project = nn.Linear(4 * embed, embed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(F.gelu(self.expand(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then feed-forward, each behind a layer norm and added to the residual stream."""

    def __init__(self, embed: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed)
        self.attention = Attention(embed, heads, dropout, causal)
        self.norm2 = nn.LayerNorm(embed)
        self.feed_forward = FeedForward(embed)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        x = x + self.dropout(self.feed_forward(self.norm2(x)))
        return x


def initialise(model: nn.Module) -> None:
    """GPT-2's start: normal weights of deviation 0.02, zero biases; the layers that write to the residual
    stream are smaller by ``sqrt(2 * blocks)``, so that its variance does not grow with depth."""
    model.apply(_initialise_layer)
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    for block in blocks:
        for layer in (block.attention.project, block.feed_forward.project):
            nn.init.normal_(layer.weight, std=_STD / (2 * len(blocks)) ** 0.5)


def _initialise_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
