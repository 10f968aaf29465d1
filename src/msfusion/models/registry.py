"""The shipped models by name, and ``build``, which makes one of them or a user's own to fit the data."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from msfusion.errors import UserError
from msfusion.models.cnn import cnn
from msfusion.models.gpt import gpt
from msfusion.models.hugging_face import PREFIX, TIMM, build_from_hugging_face, build_from_timm
from msfusion.models.inputs import InputSpec, example
from msfusion.models.meta import made_without_values
from msfusion.models.mlp import mlp
from msfusion.models.options import call, check_names, nearest, option_names
from msfusion.models.resnet import resnet18
from msfusion.models.user_file import Built, build_from_file
from msfusion.models.vit import vit

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "gpt": gpt,
    "mlp": mlp,
    "resnet18": resnet18,
    "vit": vit,
}


def build(spec: str, inputs: InputSpec | None, options: Mapping[str, object] = MappingProxyType({})) -> Built:
    """Returns a module and example inputs for it (a batch of 2, the same on every call).

    ``spec`` is a name in ``MODELS``, ``path/to/file.py:function``, ``hf:PATH`` or ``timm:NAME``
    (``hugging_face``). What the data decide (classes, channels,
    image, vocabulary, block, inputs) comes from ``inputs``; where that is None, a shipped model takes them as
    options and else fits 10 classes and 3x32x32 images (gpt: 65 tokens, block 256; mlp: 64 inputs).
    Parameters start from the global generator, which the caller seeds. ``UserError`` for an unknown model or
    option, a value out of range, or data that the model cannot take."""
    if spec.startswith(PREFIX):
        return build_from_hugging_face(spec, inputs, options)
    if spec.startswith(TIMM):
        return build_from_timm(spec, inputs, options)
    if spec not in MODELS:
        if ":" in spec or spec.endswith(".py"):
            return build_from_file(spec, inputs, options)
        raise UserError(
            f"expected a shipped model, path/to/file.py:function, {PREFIX}PATH or {TIMM}NAME, got {spec!r}: "
            f"{nearest(spec, MODELS)}"
        )
    check_names(spec, options, option_names(MODELS[spec]))
    given = {} if inputs is None else _given_by_data(spec, inputs)
    for name in given.keys() & options.keys():
        raise UserError(f"expected no option {name!r} for {spec}, got {options[name]!r}: the data decide it")
    module = call(spec, MODELS[spec], {**options, **given})
    return module, (example(inputs or _inputs_from_options(spec, options)),)


def is_from_file(spec: str) -> bool:
    """Whether a model comes from a user's own code."""
    return spec not in MODELS and not spec.startswith((PREFIX, TIMM))


def build_without_values(
    spec: str, inputs: InputSpec | None, options: Mapping[str, object] = MappingProxyType({})
) -> Built:
    """``build`` with the parameters on the meta device: for reading the model, at any size. Where the model's
    code looks at values of its parameters while it makes them, they are made."""
    return made_without_values(lambda: build(spec, inputs, options))


def _inputs_from_options(name: str, options: Mapping[str, object]) -> InputSpec:
    """The data that a shipped model fits when none are given: what the options say, else the defaults."""

    def option(key: str, default: int) -> int:
        return int(str(options.get(key, default)))

    if name == "gpt":
        return InputSpec((option("block", 256),), torch.int64, option("vocabulary", 65))
    classes = option("classes", 10)
    if name == "mlp":
        return InputSpec((option("inputs", 64),), torch.float32, classes)
    side = option("image", 32)
    return InputSpec((option("channels", 3), side, side), torch.float32, classes)


def _given_by_data(name: str, inputs: InputSpec) -> dict[str, int]:
    """The options of the model ``name`` that the data decide."""
    if name == "gpt":
        _expect(inputs.is_text, name, "token sequences", inputs)
        return {"vocabulary": inputs.classes, "block": inputs.shape[0]}
    if name == "mlp":
        _expect(inputs.dtype.is_floating_point, name, "images or vectors", inputs)
        return {"classes": inputs.classes, "inputs": math.prod(inputs.shape)}
    _expect(inputs.is_image, name, "images", inputs)
    channels, height, width = inputs.shape
    if name == "resnet18":
        return {"classes": inputs.classes, "channels": channels}
    _expect(name != "vit" or height == width, name, "square images", inputs)
    return {"classes": inputs.classes, "channels": channels, "image": min(height, width)}


def _expect(holds: bool, name: str, what: str, inputs: InputSpec) -> None:
    if not holds:
        raise UserError(
            f"expected {what} for {name}, got data of shape {inputs.shape} and type {inputs.dtype}: "
            "choose another model or other data"
        )
