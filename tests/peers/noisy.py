"""A model that draws more than its parameters at random."""

NOISY = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 32)
        nn.init.orthogonal_(self.first.weight)
        self.register_buffer("factor", torch.rand(32), persistent=False)
        self.register_buffer("kept", torch.rand(32))
        self.plain = torch.randn(64)
        self.last = nn.Linear(32, 10)

    def forward(self, x):
        hidden = torch.relu(self.first(x.flatten(1) + self.plain))
        return self.last(hidden * self.factor + self.kept)
"""
