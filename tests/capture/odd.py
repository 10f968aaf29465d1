"""Models with operations that pin: an unknown one, and one that depends on the order of the units."""

import torch
from torch import Tensor, nn


@torch.library.custom_op("msfusion_test::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    return x.sigmoid() * x


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Mysterious(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(mystery(self.a(x))).relu())


class OrderedHidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).cumsum(-1))
