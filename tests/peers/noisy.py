"""A model that draws more than its parameters at random, looks at their values while it is made, and has
complex ones."""

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
        self.scale = self.first.weight.abs().mean().item() * 5
        self.turn = nn.Parameter(torch.empty(10, dtype=torch.complex64))
        self.turn.data = torch.randn(10, dtype=torch.complex64)
        self.last = nn.Linear(32, 10)

    def forward(self, x):
        hidden = torch.relu(self.first(x.flatten(1) + self.plain))
        return (self.last(hidden * self.factor + self.kept) * self.scale * self.turn).real
"""
