"""Models of timm, with random values; see ``zoo`` for the fields of a row.

timm imports torchvision, of whose operations its models use none: where torchvision is missing, empty names
stand in for it while timm is imported.
"""

import enum
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from torch import nn
from zoo import Row, images

_MODULES = (
    "torchvision",
    *(f"torchvision.{name}" for name in ("datasets", "models", "ops", "transforms", "utils")),
    "torchvision.models.feature_extraction",
    "torchvision.ops.misc",
    "torchvision.transforms.functional",
)


class InterpolationMode(enum.Enum):
    """timm makes a table of its values when it is imported."""

    NEAREST, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = range(6)


class _StandIn(ModuleType):
    """Has every name: a class without anything in it."""

    __path__ = ()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        vars(self)[name] = InterpolationMode if name == "InterpolationMode" else type(name, (), {})
        return vars(self)[name]


def timm() -> ModuleType:
    """timm itself; skips where it is not installed."""
    if "timm" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in _MODULES:
            sys.modules[name] = _StandIn(name)
            if parent := name.rpartition(".")[0]:
                vars(sys.modules[parent])[name.rpartition(".")[2]] = sys.modules[name]
        try:
            return pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps timm")
        finally:
            for name in _MODULES:
                del sys.modules[name]
    return pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps timm")


def row(
    name: str,
    cuttable: int,
    residual: tuple[str, ...] = (),
    *,
    size: int = 32,
    normed: bool = False,
    **options: Any,
) -> Row:
    """``normed``: whether the residual streams are normalised; ``options``: those of timm."""

    def model() -> nn.Module:
        module: nn.Module = timm().create_model(name, pretrained=False, num_classes=10, **options)
        return module

    return Row(name, model, images(size), cuttable, residual, residual if normed else (), slow=True)


def projections(*stages: int) -> tuple[str, ...]:
    return tuple(f"blocks.{stage}.0.conv_pwl.out" for stage in stages)


RESNET = ("conv1.out", *(f"layer{stage}.0.conv2.out" for stage in (2, 3, 4)))
RESNEXT = tuple(f"layer{stage}.0.conv3.out" for stage in (1, 2, 3, 4))
CONVNEXT = ("stem.0.out", *(f"stages.{stage}.downsample.1.out" for stage in (1, 2, 3)))
SWIN = ("patch_embed.proj.out", *(f"layers.{stage}.downsample.reduction.out" for stage in (1, 2, 3)))
REGNET = tuple(f"s{stage}.b1.conv3.conv.out" for stage in (2, 3, 4))

TIMM_ROWS = [
    row("resnet18", 12, RESNET),
    row("resnext50_32x4d", 21, RESNEXT),
    row("vgg11_bn", 10),
    row("mobilenetv2_100", 25, projections(1, 2, 3, 4, 5)),
    row("mobilenetv3_small_100", 27, projections(1, 2, 3, 4)),
    row("densenet121", 20, block_config=(2, 2, 2, 2)),
    row("convnext_tiny", 8, CONVNEXT, depths=(1, 1, 1, 1), normed=True),
    row("vit_tiny_patch16_224", 5, ("cls_token.out",), img_size=32, depth=2, normed=True),
    row("mixer_s16_224", 17, ("stem.proj.out",), img_size=32, normed=True),
    row("swin_tiny_patch4_window7_224", 12, SWIN, size=56, img_size=56, depths=(1, 1, 1, 1), normed=True),
    row("efficientnet_b0", 40, projections(1, 2, 3, 4, 5)),
    row("regnety_004", 37, REGNET),
]
