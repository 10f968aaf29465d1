"""Models that every law of the capture tests runs over; all small, plain PyTorch, random values."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msfusion.models.cnn import cnn
from msfusion.models.gpt import gpt
from msfusion.models.resnet import resnet18
from msfusion.models.vit import vit

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One model. inputs: batch size -> arguments.

    residual: its residual streams. normed: axes over which a normalisation, softmax or mean runs, so that
    units cannot be silenced. tolerance: of the permutation proof; a large one means float32.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    cuttable: int
    residual: tuple[str, ...] = ()
    normed: tuple[str, ...] = ()
    tolerance: float = 1e-10
    slow: bool = False


def images(size: int = 16, channels: int = 3) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randn(batch, channels, size, size),), {})


def vectors(*shape: int) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randn(batch, *shape),), {})


def tokens(vocabulary: int = 61, length: int = 7) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randint(0, vocabulary, (batch, length)),), {})


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 48), nn.Sigmoid(), nn.Linear(48, 40), nn.GELU(), nn.Linear(40, 10))


class FlattenCNN(nn.Module):
    """Two convolutions and a flatten; ``literal`` writes its size out."""

    def __init__(self, literal: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc1 = nn.Linear(12 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 10)
        self.literal = literal

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 12 * 4 * 4) if self.literal else x.flatten(1)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.1, self.training))


class PaddedBlock(nn.Module):
    """ResNet's option A: the shortcut drops every other pixel and pads channels with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.pad = (channels - channels_in) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


def padded_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.BatchNorm2d(8),
        PaddedBlock(8, 8, 1),
        PaddedBlock(8, 16, 2),
        PaddedBlock(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class UNet(nn.Module):
    """Two levels, group norm, skip connections by concatenation."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = self.block(3, c), self.block(c, 2 * c), self.block(2 * c, 4 * c)
        self.up2 = nn.ConvTranspose2d(4 * c, 2 * c, 2, 2)
        self.up1 = nn.ConvTranspose2d(2 * c, c, 2, 2)
        self.join2, self.join1 = self.block(4 * c, 2 * c), self.block(2 * c, c)
        self.out = nn.Conv2d(c, 2, 1)

    @staticmethod
    def block(channels_in: int, channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, 1, 1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        m = self.middle(F.max_pool2d(b, 2))
        y = self.join2(torch.cat([self.up2(m), b], 1))
        return self.out(self.join1(torch.cat([self.up1(y), a], 1)))


class NanoAttention(nn.Module):
    """As in nanoGPT: fused q, k, v, the head size derived from the embedding, an explicit mask."""

    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(embed, 3 * embed)
        self.c_proj = nn.Linear(embed, embed)
        self.n_head, self.n_embd = heads, embed
        self.register_buffer("mask", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, embed = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (
            t.view(batch, length, self.n_head, embed // self.n_head).transpose(1, 2) for t in (q, k, v)
        )
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(batch, length, embed))


class NanoBlock(nn.Module):
    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(embed), nn.LayerNorm(embed)
        self.attn = NanoAttention(embed, heads)
        self.mlp = nn.Sequential(nn.Linear(embed, 4 * embed), nn.GELU(), nn.Linear(4 * embed, embed))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT with tied embeddings; positions beyond the example's length are not used by it."""

    def __init__(self, vocabulary: int = 61, embed: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, embed), nn.Embedding(64, embed)
        self.h = nn.ModuleList(NanoBlock(embed, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(embed)
        self.lm_head = nn.Linear(embed, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class FusedQKV(nn.Module):
    """A fused projection viewed as (3, H, D), (H, 3, D), or (H, 3D) in chunks."""

    def __init__(self, order: str, embed: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(12, embed), nn.Linear(embed, 5)
        self.qkv, self.out = nn.Linear(embed, 3 * embed), nn.Linear(embed, embed)
        self.order, self.heads, self.head_dim = order, heads, embed // heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        batch, length, _ = x.shape
        y = self.qkv(x)
        if self.order == "3HD":
            y = y.view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = y.unbind(0)
        elif self.order == "H3D":
            y = y.view(batch, length, self.heads, 3, self.head_dim).permute(3, 0, 2, 1, 4)
            q, k, v = y.unbind(0)
        else:
            parts = y.view(batch, length, self.heads, 3 * self.head_dim).chunk(3, -1)
            q, k, v = (t.transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.leave(self.out(y))


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


class LlamaAttention(nn.Module):
    """Grouped queries and rotary positions."""

    def __init__(self, embed: int, heads: int, groups: int, head_dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(embed, heads * head_dim, bias=False)
        self.k = nn.Linear(embed, groups * head_dim, bias=False)
        self.v = nn.Linear(embed, groups * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, embed, bias=False)
        self.head_dim = head_dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        times = q.shape[1] // k.shape[1]
        k, v = (
            t[:, :, None].expand(-1, -1, times, -1, -1).reshape(t.shape[0], -1, *t.shape[2:]) for t in (k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))


class LlamaBlock(nn.Module):
    def __init__(self, embed: int, heads: int, groups: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(embed), RMSNorm(embed)
        self.attention = LlamaAttention(embed, heads, groups, head_dim)
        self.gate_up = nn.Linear(embed, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, embed, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class LlamaLike(nn.Module):
    def __init__(self, embed: int = 32, heads: int = 4, groups: int = 2, head_dim: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(61, embed)
        self.blocks = nn.ModuleList(LlamaBlock(embed, heads, groups, head_dim, 40) for _ in range(2))
        self.norm = RMSNorm(embed)
        self.head = nn.Linear(embed, 61, bias=False)
        inv_freq = 10000 ** -(torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tokens(idx)
        angles = torch.arange(idx.shape[1], device=idx.device)[:, None] * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        return self.head(self.norm(x))


class ComplexRotary(nn.Module):
    """Rotary positions as in the first Llama code: pairs as complex numbers, their angles in a buffer."""

    def __init__(self, embed: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(12, embed), nn.Linear(embed, 5)
        self.q, self.k, self.v, self.o = (nn.Linear(embed, embed) for _ in range(4))
        self.head_dim = embed // heads
        frequencies = 10000 ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.arange(16)[:, None] * frequencies
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns[: x.shape[1], None]).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (self.turned(q), self.turned(k), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.leave(x + self.o(y))


class CharLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(61, 24)
        self.lstm = nn.LSTM(24, 32, 2, batch_first=True)
        self.out = nn.Linear(32, 61)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(x))[0])


class CharGRUCell(nn.Module):
    """A loop over time; ``literal`` writes the size of the first state out."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(61, 24), nn.GRUCell(24, 32), nn.Linear(32, 61)
        self.literal = literal

    def forward(self, x: Tensor) -> Tensor:
        e, out = self.embed(x), []
        size = 32 if self.literal else self.cell.weight_hh.shape[1]
        h = torch.zeros(x.size(0), size) if self.literal else e.new_zeros(x.size(0), size)
        for t in range(x.size(1)):
            h = self.cell(e[:, t], h)
            out.append(h)
        return self.out(torch.stack(out, 1))


class MixerBlock(nn.Module):
    def __init__(self, patches: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.time = nn.Sequential(nn.Linear(patches, 20), nn.GELU(), nn.Linear(20, patches))
        self.mix = nn.Sequential(nn.Linear(channels, 40), nn.GELU(), nn.Linear(40, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mix(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(16, channels), MixerBlock(16, channels))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class EinsumAttention(nn.Module):
    """Raw parameters with one dimension per head."""

    def __init__(self, embed: int = 24, heads: int = 4, head_dim: int = 8) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(12, embed), nn.Linear(embed, 5)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(embed, heads, head_dim) / 5) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(heads, head_dim, embed) / 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (torch.einsum("btc,chd->bthd", x, w) for w in (self.wq, self.wk, self.wv))
        a = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1)
        return self.leave(x + torch.einsum("bhts,bshd,hdc->btc", a, v, self.wo))


class SoftMoE(nn.Module):
    """Every expert on every token, mixed by a softmax."""

    def __init__(self, embed: int = 24, experts: int = 4, hidden: int = 20) -> None:
        super().__init__()
        self.enter, self.router, self.leave = (
            nn.Linear(12, embed),
            nn.Linear(embed, experts),
            nn.Linear(embed, 5),
        )
        self.w1 = nn.Parameter(torch.randn(experts, embed, hidden) / 5)
        self.w2 = nn.Parameter(torch.randn(experts, hidden, embed) / 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        gates = self.router(x).softmax(-1)
        y = torch.matmul(F.gelu(torch.matmul(x.unsqueeze(-3), self.w1)), self.w2)
        return self.leave(x + (y * gates.transpose(-1, -2).unsqueeze(-1)).sum(-3))


class SuperResolution(nn.Module):
    """Pixel shuffle, a per-channel PReLU, and one convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.prelu = nn.Conv2d(3, 16, 3, padding=1), nn.PReLU(16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.last = nn.Conv2d(16, 12 * 4, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.first(x))
        x = self.twice(F.relu(self.twice(x) + x))
        return self.last(F.pixel_shuffle(self.up(x), 2))


class OrderedOps(nn.Module):
    """Every linear layer's outputs go through an operation that depends on their order, except the last's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(i, 16) for i in (12, 16, 16, 16))
        self.e, self.out = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).cumsum(-1))
        x = self.c(x + x.flip(-1))
        x = self.d(x.sort(-1).values)
        return self.out(self.e(F.relu(x) * torch.arange(16, dtype=x.dtype, device=x.device)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return F.hardsigmoid(scale) * x


class InvertedResidual(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, channels_in: int, hidden: int, channels: int, stride: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depth = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.norm2, self.squeeze = nn.BatchNorm2d(hidden), SqueezeExcite(hidden, 8)
        self.project, self.norm3 = nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.shortcut = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm1(self.expand(x)))
        y = self.squeeze(F.hardswish(self.norm2(self.depth(y))))
        y = self.norm3(self.project(y))
        return x + y if self.shortcut else y


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        InvertedResidual(8, 24, 8, 1),
        InvertedResidual(8, 32, 16, 2),
        InvertedResidual(16, 40, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def resnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, 1, 1, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


class ChannelShuffle(nn.Module):
    """ShuffleNet's unit: half of the channels pass, then the halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.enter = nn.Conv2d(3, channels, 1)
        self.inner = nn.Sequential(nn.Conv2d(half, 20, 1), nn.ReLU(), nn.Conv2d(20, half, 1))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.enter(x).chunk(2, dim=1)
        x = torch.cat((left, self.inner(right)), dim=1)
        batch, channels, *space = x.shape
        x = x.view(batch, 2, channels // 2, *space).transpose(1, 2).reshape(batch, channels, *space)
        return self.head(x.mean((2, 3)))


class DenseNet(nn.Module):
    """Each layer sees all before it, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 6 * i), nn.ReLU(), nn.Conv2d(8 + 6 * i, 6, 3, padding=1))
            for i in range(3)
        )
        self.head = nn.Linear(26, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = torch.cat((x, layer(x)), dim=1)
        return self.head(x.mean((2, 3)))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(12, 32), body, nn.Linear(32, 5))


RESNET_STREAMS = ("stem.out", "blocks.2.conv2.out", "blocks.4.conv2.out", "blocks.6.conv2.out")

ROWS = [
    Row("mlp", mlp, vectors(20), 2),
    Row("cnn", cnn, images(32), 4),
    Row("flatten cnn", FlattenCNN, images(), 3),
    Row("flatten cnn, literal size", lambda: FlattenCNN(literal=True), images(), 3),
    Row("resnet18", lambda: resnet18(10, 3, 16), images(32), 12, RESNET_STREAMS, slow=True),
    Row("padded resnet", padded_resnet, images(), 8, ("0.out",), slow=True),
    Row("unet", UNet, images(), 12, slow=True),
    Row("gpt", lambda: gpt(61, 16, 2, 4, 32), tokens(), 5, ("tokens.out",), ("tokens.out",)),
    Row(
        "tied gpt",
        lambda: gpt(61, 16, 2, 4, 32, tie=True),
        tokens(),
        5,
        ("tokens.out",),
        ("tokens.out",),
        slow=True,
    ),
    Row("vit", lambda: vit(10, 3, 16, 4, 2, 4, 32), images(), 5, ("positions.out",), ("positions.out",)),
    Row("nanogpt", NanoGPT, tokens(), 5, ("wte.out",), ("wte.out",)),
    Row("qkv (3, H, D)", lambda: FusedQKV("3HD"), vectors(5, 12), 3),
    Row("qkv (H, 3, D)", lambda: FusedQKV("H3D"), vectors(5, 12), 3, slow=True),
    Row("qkv (H, 3D)", lambda: FusedQKV("H chunks"), vectors(5, 12), 3, slow=True),
    Row("llama-like", LlamaLike, tokens(), 5, ("tokens.out",), ("tokens.out",)),
    Row("torch encoder", encoder, vectors(5, 12), 5, ("0.out",), ("0.out",), slow=True),
    Row("complex rotary", ComplexRotary, vectors(5, 12), 2, ("enter.out",), slow=True),
    Row("char lstm", CharLSTM, tokens(), 2),
    Row("gru cell", lambda: CharGRUCell(False), tokens(), 2, slow=True),
    Row("gru cell, literal size", lambda: CharGRUCell(True), tokens(), 2, tolerance=1e-5, slow=True),
    Row("mixer", Mixer, images(), 5, ("patches.out",), ("patches.out",), slow=True),
    Row("einsum attention", EinsumAttention, vectors(5, 12), 3, ("wq.in",)),
    Row("soft moe", SoftMoE, vectors(5, 12), 2, ("w1.in",), ("w1.out",), slow=True),
    Row("pixel shuffle", SuperResolution, images(8), 2, slow=True),
    Row("ordered operations", OrderedOps, vectors(12), 1, slow=True),
    Row("mobilenet", mobilenet, images(), 8, ("0.out", "2.project.out"), slow=True),
    Row("resnext", resnext, images(), 2),
    Row("channel shuffle", lambda: ChannelShuffle(16), images(), 3, slow=True),
    Row("densenet", DenseNet, images(), 4, slow=True),
]
