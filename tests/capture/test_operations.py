"""One operation at a time between two convolutions: the channels between them stay an axis, rightly."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msfusion.capture import capture, permutation_errors

Operation = Callable[[Tensor], Tensor]

KEEPING: dict[str, Operation] = {
    "instance norm": F.instance_norm,
    "layer norm, channels last": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2),
    "group norm": lambda x: F.group_norm(x, 4),
    "channel shuffle": lambda x: F.channel_shuffle(x, 4),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, size=(5, 7)),
    "bicubic": lambda x: F.interpolate(x, size=(5, 7), mode="bicubic"),
    "fourier": lambda x: torch.fft.irfft2(torch.fft.rfft2(x)),
    "normalize": lambda x: F.normalize(x, dim=1),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "logsumexp": lambda x: x - x.logsumexp(1, True),
    "roll in space": lambda x: x.roll((1, 1), (2, 3)),
    "turn in space": lambda x: x.rot90(1, (2, 3)),
    "cumsum in space": lambda x: x.cumsum(2),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1),
    "power pool": lambda x: F.lp_pool2d(x, 2, 2),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "grid sample": lambda x: F.grid_sample(x, torch.zeros(2, 8, 8, 2).to(x), align_corners=False),
    "mean and variance": lambda x: (x - x.mean((2, 3), True)) / x.var((2, 3), keepdim=True).sqrt(),
    "deviation": lambda x: x / torch.std_mean(x, (2, 3), keepdim=True)[0],
    "largest channel": lambda x: x - x.amax(1, True),
    "largest channel, no index": lambda x: x - x.max(1, keepdim=True).values,
    "smallest in space": lambda x: x - x.min(-1, keepdim=True).values,
    "median in space": lambda x: x - x.flatten(2).median(-1).values[..., None, None],
    "quantile in space": lambda x: x / x.flatten(2).quantile(0.9, -1)[..., None, None],
    "top values in space": lambda x: x.flatten(2).topk(16, -1).values.unflatten(-1, (4, 4)),
    "maxout of a stack": lambda x: torch.stack([x, -x]).max(0).values,
    "unbind and stack": lambda x: torch.stack(x.unbind(2), 2),
    "chunk and cat in space": lambda x: torch.cat(x.chunk(2, 2), 2),
    "reflected padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "circular padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "replicated padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "tiled in space": lambda x: x.tile(1, 1, 2, 2),
    "index in space": lambda x: x[:, :, torch.arange(4)],
    "gather in space": lambda x: x.gather(3, torch.zeros(2, 16, 8, 8, dtype=torch.long)),
    "index_select in space": lambda x: x.index_select(2, torch.arange(4)),
    "moved dimensions": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "einsum with ellipsis": lambda x: torch.einsum("...hw,...wk->...hk", x, x),
    "distances": lambda x: (
        x * torch.cdist(x.flatten(2).mT, x.flatten(2).mT).mean((1, 2))[:, None, None, None]
    ),
    "cosine similarity": lambda x: x * F.cosine_similarity(x, x, dim=1)[:, None],
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "clamp": lambda x: x.clamp(min=0, max=6),
    "straight-through rounding": lambda x: x + (x.round() - x).detach(),
    "coordinates": lambda x: x + torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")[0].to(x),
    "own depthwise filter": lambda x: F.conv2d(x, torch.ones(16, 1, 3, 3).to(x), padding="same", groups=16),
}

LOSING: dict[str, Operation] = {
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "sort": lambda x: x.sort(1).values,
    "cumsum": lambda x: x.cumsum(1),
    "positions of channels": lambda x: x * torch.arange(16).to(x)[:, None, None],
    "index of the largest channel": lambda x: x * x.argmax(1, keepdim=True),
    "fourier over channels": lambda x: torch.fft.fft(x, dim=1).real,
    "local response": lambda x: F.local_response_norm(x, 3),
}


class Between(nn.Module):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.operation(self.a(x)))


def check(operation: Operation) -> tuple[str, ...]:
    torch.manual_seed(0)
    model, x = Between(operation), torch.randn(2, 3, 8, 8)
    axes = capture(model, (x,)).axes
    assert max(permutation_errors(model, (x,), {}, axes).values(), default=0) < 1e-9
    return tuple(axes.axes)


@pytest.mark.slow
@pytest.mark.parametrize("operation", [pytest.param(f, id=name) for name, f in KEEPING.items()])
def test_operations_that_do_not_care_for_order_keep_the_axis(operation: Operation) -> None:
    assert check(operation)


@pytest.mark.slow
@pytest.mark.parametrize("operation", [pytest.param(f, id=name) for name, f in LOSING.items()])
def test_operations_that_care_for_order_lose_it(operation: Operation) -> None:
    assert all(name != "a.out" for name in check(operation))
