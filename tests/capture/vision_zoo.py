"""Image models as torchvision writes them, with few channels; see ``zoo`` for the fields of a row."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Row, images


def conv(
    channels_in: int,
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[..., nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class StochasticDepth(nn.Module):
    """Leaves a whole branch out for some of the examples, in train mode."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.p = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * noise.bernoulli_(1 - self.p).div_(1 - self.p)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, squeezed: int, scale: Callable[..., nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), scale()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class Classifier(nn.Module):
    """Features, mean over the image, a head."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.avgpool, self.classifier = features, nn.AdaptiveAvgPool2d((1, 1)), head

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Bottleneck(nn.Module):
    """Of ResNet-50, ResNeXt (groups) and Wide ResNet."""

    def __init__(self, channels_in: int, planes: int, stride: int, groups: int, base_width: int) -> None:
        super().__init__()
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1, self.bn1 = nn.Conv2d(channels_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels_in != planes * 4:
            self.downsample = conv(channels_in, planes * 4, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class BottleneckResNet(nn.Module):
    def __init__(self, groups: int = 1, base_width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        block = partial(Bottleneck, groups=groups, base_width=base_width)
        self.layer1 = nn.Sequential(block(8, 8, 1), block(32, 8, 1))
        self.layer2 = nn.Sequential(block(32, 12, 2), block(48, 12, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class VGG(nn.Module):
    """Batch norm, and 4 x 4 positions flattened into a head of three layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for channels in (8, 12, 16, 16):
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels)]
            layers += [nn.ReLU(inplace=True)] + ([nn.MaxPool2d(2, 2)] if channels_in != 16 else [])
            channels_in = channels
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((4, 4))
        self.classifier = nn.Sequential(
            nn.Linear(16 * 4 * 4, 48),
            nn.ReLU(True),
            nn.Dropout(0.1),
            nn.Linear(48, 40),
            nn.ReLU(True),
            nn.Dropout(0.1),
            nn.Linear(40, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def alexnet() -> nn.Module:
    """Large strides, overlapping pools, dropout before each linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((3, 3)),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * 9, 32),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Linear(32, 10),
    )


class Fire(nn.Module):
    """SqueezeNet: two expansions side by side."""

    def __init__(self, channels_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """The classes are channels of the last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(12, 6, 8),
            Fire(16, 6, 10),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.1), nn.Conv2d(20, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        nn.init.constant_(self.classifier[1].bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class Inception(nn.Module):
    """GoogLeNet: four branches side by side."""

    def __init__(self, channels_in: int, widths: Sequence[int]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.branch1 = conv(channels_in, one, 1)
        self.branch2 = nn.Sequential(conv(channels_in, three_in, 1), conv(three_in, three))
        self.branch3 = nn.Sequential(conv(channels_in, five_in, 1), conv(five_in, five))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(channels_in, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def googlenet() -> nn.Module:
    features = nn.Sequential(
        conv(3, 12, 3, 2), Inception(12, (4, 6, 8, 4, 6, 6)), Inception(24, (6, 6, 10, 4, 6, 4))
    )
    return Classifier(features, nn.Linear(26, 10))


class DenseLayer(nn.Module):
    """DenseNet: what came before side by side, a bottleneck, a few channels more."""

    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, channels_in: int, growth: int) -> None:
        super().__init__()
        for i in range(layers):
            self[f"denselayer{i + 1}"] = DenseLayer(channels_in + i * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet121() -> nn.Module:
    """Two blocks with a transition between them."""
    features = nn.Sequential(
        conv(3, 8, 3, 2),
        DenseBlock(2, 8, 4),
        nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2, 2)),
        DenseBlock(2, 8, 4),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
    )
    return Classifier(features, nn.Linear(16, 10))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: split, one half through a branch, concatenate, shuffle."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        half, self.stride = channels // 2, stride
        self.branch1 = nn.Sequential()
        if stride > 1:
            depthwise = conv(channels_in, channels_in, 3, stride, channels_in, activation=None)
            self.branch1 = nn.Sequential(depthwise, conv(channels_in, half, 1))
        self.branch2 = nn.Sequential(
            conv(channels_in if stride > 1 else half, half, 1),
            conv(half, half, 3, stride, half, activation=None),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


def shufflenet() -> nn.Module:
    features = nn.Sequential(
        conv(3, 8, 3, 2),
        ShuffleUnit(8, 16, 2),
        ShuffleUnit(16, 16, 1),
        ShuffleUnit(16, 24, 2),
        ShuffleUnit(24, 24, 1),
        conv(24, 32, 1),
    )
    return Classifier(features, nn.Linear(32, 10))


class MBConv(nn.Module):
    """The inverted residual of MobileNetV2, MobileNetV3 and EfficientNet."""

    def __init__(
        self,
        channels_in: int,
        hidden: int,
        channels: int,
        stride: int,
        activation: Callable[..., nn.Module] = nn.ReLU6,
        squeeze: nn.Module | None = None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != channels_in:
            layers.append(conv(channels_in, hidden, 1, activation=activation))
        layers.append(conv(hidden, hidden, 3, stride, hidden, activation=activation))
        layers += [squeeze] if squeeze else []
        layers.append(conv(hidden, channels, 1, activation=None))
        self.block, self.stochastic_depth = nn.Sequential(*layers), StochasticDepth(drop)
        self.use_res_connect = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        return self.stochastic_depth(result) + x if self.use_res_connect else result


def mobilenet_v2() -> nn.Module:
    features = nn.Sequential(
        conv(3, 8, 3, 2, activation=nn.ReLU6),
        MBConv(8, 8, 8, 1),
        MBConv(8, 24, 12, 2),
        MBConv(12, 36, 12, 1),
        conv(12, 40, 1, activation=nn.ReLU6),
    )
    return Classifier(features, nn.Sequential(nn.Dropout(0.1), nn.Linear(40, 10)))


def mobilenet_v3() -> nn.Module:
    def squeeze(channels: int) -> nn.Module:
        return SqueezeExcitation(channels, 8, nn.Hardsigmoid)

    features = nn.Sequential(
        conv(3, 8, 3, 2, activation=nn.Hardswish),
        MBConv(8, 8, 8, 1, nn.ReLU, squeeze(8)),
        MBConv(8, 24, 12, 2, nn.ReLU),
        MBConv(12, 36, 12, 1, nn.Hardswish, squeeze(36)),
        conv(12, 40, 1, activation=nn.Hardswish),
    )
    head = nn.Sequential(nn.Linear(40, 32), nn.Hardswish(), nn.Dropout(0.1), nn.Linear(32, 10))
    return Classifier(features, head)


def efficientnet() -> nn.Module:
    def squeeze(channels: int) -> nn.Module:
        found = SqueezeExcitation(channels, 6)
        found.activation = nn.SiLU(inplace=True)
        return found

    features = nn.Sequential(
        conv(3, 8, 3, 2, activation=nn.SiLU),
        MBConv(8, 8, 8, 1, nn.SiLU, squeeze(8)),
        MBConv(8, 24, 12, 2, nn.SiLU, squeeze(24)),
        MBConv(12, 36, 12, 1, nn.SiLU, squeeze(36), 0.1),
        conv(12, 40, 1, activation=nn.SiLU),
    )
    return Classifier(features, nn.Sequential(nn.Dropout(0.1), nn.Linear(40, 10)))


class RegNetBlock(nn.Module):
    """RegNetY: a bottleneck with groups and squeeze-and-excite."""

    def __init__(self, channels_in: int, channels: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj = None
        if channels_in != channels or stride != 1:
            self.proj = conv(channels_in, channels, 1, stride, activation=None)
        self.f = nn.Sequential(
            conv(channels_in, channels, 1),
            conv(channels, channels, 3, stride, channels // group_width),
            SqueezeExcitation(channels, round(0.25 * channels_in)),
            conv(channels, channels, 1, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu((x if self.proj is None else self.proj(x)) + self.f(x))


def regnet() -> nn.Module:
    blocks = [RegNetBlock(8, 16, 2, 4), RegNetBlock(16, 16, 1, 4), RegNetBlock(16, 24, 2, 4)]
    return Classifier(nn.Sequential(conv(3, 8, 3, 2), *blocks), nn.Linear(24, 10))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)


class CNBlock(nn.Module):
    """ConvNeXt: depthwise, channels last, layer scale, stochastic depth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.ones(channels, 1, 1) * 0.5)
        self.stochastic_depth = StochasticDepth(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.stochastic_depth(self.layer_scale * self.block(x)) + x


def convnext() -> nn.Module:
    features = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8, eps=1e-6)),
        CNBlock(8),
        nn.Sequential(LayerNorm2d(8, eps=1e-6), nn.Conv2d(8, 12, 2, 2)),
        CNBlock(12),
    )
    head = nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), LayerNorm2d(12), nn.Flatten(1), nn.Linear(12, 10))
    return Classifier(features, head)


class ViTBlock(nn.Module):
    """A block of nn.MultiheadAttention, as in torchvision's vision transformer."""

    def __init__(self, embed: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(embed, eps=1e-6), nn.LayerNorm(embed, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(embed, heads, dropout=0.1, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(embed, hidden), nn.GELU(), nn.Linear(hidden, embed))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + self.dropout(y)
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    def __init__(self, embed: int = 32) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, embed, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, embed))
        self.pos_embedding = nn.Parameter(torch.empty(1, 17, embed).normal_(std=0.02))
        self.layers = nn.Sequential(ViTBlock(embed, 4, 64), ViTBlock(embed, 4, 64))
        self.ln, self.head = nn.LayerNorm(embed, eps=1e-6), nn.Linear(embed, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[0], x.shape[2] // 4, x.shape[3] // 4
        x = self.conv_proj(x).reshape(batch, -1, height * width).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(batch, -1, -1), x], dim=1) + self.pos_embedding
        return self.head(self.ln(self.layers(x))[:, 0])


class ShiftedWindowAttention(nn.Module):
    """Attention inside windows of 2 x 2, rolled by one, with a table of relative positions."""

    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, heads) * 0.02)
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        steps = (places[:, :, None] - places[:, None, :] + 1).permute(1, 2, 0)
        self.register_buffer("relative_position_index", (3 * steps[..., 0] + steps[..., 1]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = (height // 2) * (width // 2)
        x = x.view(batch, height // 2, 2, width // 2, 2, dim)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch * windows, 4, dim)
        qkv = self.qkv(x).reshape(x.size(0), 4, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (dim // self.heads) ** -0.5, qkv[1], qkv[2]
        bias = self.relative_position_bias_table[self.relative_position_index].view(4, 4, -1)
        attention = q.matmul(k.transpose(-2, -1)) + bias.permute(2, 0, 1).unsqueeze(0)
        if self.shift:
            attention = attention.view(batch, windows, self.heads, 4, 4) + self.mask(height, width, x)
            attention = attention.view(-1, self.heads, 4, 4)
        x = F.softmax(attention, dim=-1).matmul(v).transpose(1, 2).reshape(batch * windows, 4, dim)
        x = self.proj(x).view(batch, height // 2, width // 2, 2, 2, dim)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, dim)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def mask(self, height: int, width: int, x: Tensor) -> Tensor:
        """Nothing passes between what lay on opposite sides before the roll."""
        region = x.new_zeros((height, width))
        region[-1:, :] += 1
        region[:, -1:] += 2
        region = region.view(height // 2, 2, width // 2, 2).permute(0, 2, 1, 3).reshape(-1, 4)
        apart = region.unsqueeze(1) - region.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).unsqueeze(1).unsqueeze(0)


class SwinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.stochastic_depth = ShiftedWindowAttention(dim, heads, shift), StochasticDepth(0.1)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        return x + self.stochastic_depth(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * dim, 2 * dim, bias=False), nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


def swin() -> nn.Module:
    features = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 2, 2), Permute(0, 2, 3, 1), nn.LayerNorm(16)),
        nn.Sequential(SwinBlock(16, 4, 0), SwinBlock(16, 4, 1)),
        PatchMerging(16),
        SwinBlock(32, 4, 0),
        nn.LayerNorm(32),
        Permute(0, 3, 1, 2),
    )
    return Classifier(features, nn.Linear(32, 10))


class SplitAttention(nn.Module):
    """ResNeSt: branches of one grouped convolution, weighted against each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn0 = (
            nn.Conv2d(channels, 2 * channels, 3, 1, 1, groups=2),
            nn.BatchNorm2d(2 * channels),
        )
        self.fc1, self.fc2 = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv(x)))
        batch, channels = x.shape[:2]
        x = x.reshape(batch, 2, channels // 2, *x.shape[2:])
        weights = self.fc2(F.relu(self.fc1(x.sum(1).mean((2, 3), keepdim=True))))
        weights = weights.view(batch, 2, channels // 2, 1, 1).softmax(1)
        return (x * weights).sum(1)


def resnest() -> nn.Module:
    return Classifier(nn.Sequential(conv(3, 8), SplitAttention(8), conv(8, 12, 3, 2)), nn.Linear(12, 10))


class ScaledStdConv2d(nn.Conv2d):
    """Of norm-free ResNets: the weight is standardised in the forward."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels, kernel, stride, kernel // 2)
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * self.scale).view(-1),
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class NormFreeBlock(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = ScaledStdConv2d(channels, hidden, 3)
        self.conv2 = ScaledStdConv2d(hidden, channels, 3)
        self.skipinit_gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x)))) * self.skipinit_gain


def norm_free() -> nn.Module:
    return Classifier(
        nn.Sequential(ScaledStdConv2d(3, 8, 3, 2), NormFreeBlock(8, 12), NormFreeBlock(8, 12)),
        nn.Linear(8, 10),
    )


def resnext50() -> nn.Module:
    return BottleneckResNet(groups=4, base_width=32)


def row(
    name: str,
    model: Callable[[], nn.Module],
    cuttable: int,
    residual: tuple[str, ...] = (),
    *,
    size: int = 16,
    normed: bool = False,
    unsilenced: tuple[str, ...] = (),
) -> Row:
    """``normed``: whether the residual streams are normalised; ``unsilenced``: other axes that are."""
    mixed = (*(residual if normed else ()), *unsilenced)
    return Row(name, model, images(size), cuttable, residual, mixed, slow=True)


VISION_ROWS = [
    row("resnet50", BottleneckResNet, 11, ("layer1.0.conv3.out", "layer2.0.conv3.out"), size=32),
    row("resnext50", resnext50, 7, ("layer1.0.conv3.out", "layer2.0.conv3.out"), size=32),
    row("vgg11_bn", VGG, 6, size=32),
    row("alexnet", alexnet, 3, size=32),
    row("squeezenet", SqueezeNet, 7, size=32),
    row("googlenet", googlenet, 13),
    row("densenet121", densenet121, 10),
    row("shufflenet_v2", shufflenet, 6),
    row("mobilenet_v2", mobilenet_v2, 5, ("features.2.block.2.0.out",)),
    row("mobilenet_v3", mobilenet_v3, 8, ("features.0.0.out", "features.2.block.2.0.out")),
    row("efficientnet", efficientnet, 8, ("features.0.0.out", "features.2.block.3.0.out")),
    row("regnet_y", regnet, 9, ("features.1.proj.0.out",)),
    row("convnext", convnext, 4, ("features.0.0.out", "features.2.1.out"), normed=True),
    row("vit_b", VisionTransformer, 5, ("class_token.out",), normed=True),
    row("swin_t", swin, 8, ("features.0.0.out", "features.2.reduction.out"), normed=True),
    row("resnest", resnest, 2, unsilenced=("features.0.0.out",)),
    row(
        "nf_resnet",
        norm_free,
        3,
        ("features.0.out",),
        normed=True,
        unsilenced=("features.1.conv1.out", "features.2.conv1.out"),
    ),
]
