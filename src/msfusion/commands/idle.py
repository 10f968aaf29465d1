"""Settings that a user gave and that have no effect, and variants of methods that change nothing: told by a
warning each, as nothing else would say so."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from msfusion.config import Config
from msfusion.learn.methods import Method, get_method
from msfusion.runtimes.run import CAPACITIES, Run

Obeyed: TypeAlias = tuple[str, Callable[[Any, Method], bool]]
"""What a setting is for, in words, and whether it is that: (settings, method) -> has an effect."""

_MERGES: Obeyed = ("methods that merge", lambda run, method: method.evaluated != "own")
_CUTS: Obeyed = ("methods that cut the model", lambda run, method: method.cut is not None)
_OVERLAP: Obeyed = ("msfusion, with its overlap", lambda run, method: method.overlap)
_FEEDBACK: Obeyed = (
    "msfusion with adapt.kind feedback",
    lambda run, method: method.overlap and run.adapt.kind == "feedback",
)
_CONTRAST: Obeyed = (
    "msfusion with contrast.weight above 0",
    lambda run, method: method.contrast and run.contrast.weight > 0,
)
_TEXT: Obeyed = ("text", lambda run, method: run.data.name == "text")
_IMAGES: Obeyed = ("images", lambda run, method: run.data.name != "text")
_PARQUET: Obeyed = ("images in parquet files", lambda run, method: run.data.name in ("parquet", "cifar10"))

_SETTINGS: dict[str, Obeyed] = {
    **dict.fromkeys(CAPACITIES, _CUTS),
    **dict.fromkeys(("loss_rate", "late_rate", "mask_unseen", "server_step", "adapt.measure"), _MERGES),
    "server_momentum": (
        "methods that merge, with momentum",
        lambda run, m: m.momentum and _MERGES[1](run, m),
    ),
    "twins": ("msfusion, with its twins", lambda run, m: m.twins or m.cut == "inner"),
    "complement": ("msfusion:apart", lambda run, m: m.apart),
    **dict.fromkeys(("overlap", "adapt.kind"), _OVERLAP),
    "adapt.last": (
        "msfusion with adapt.kind linear, cosine or exponential",
        lambda run, m: m.overlap and run.adapt.kind not in ("constant", "feedback"),
    ),
    **dict.fromkeys(("adapt.target", "adapt.gain", "adapt.most"), _FEEDBACK),
    "contrast.weight": ("msfusion, with its contrastive loss", lambda run, m: m.contrast),
    **dict.fromkeys(("contrast.temperature", "contrast.every", "contrast.on"), _CONTRAST),
    "train.momentum": ("train.optimizer sgd", lambda run, m: run.train.optimizer == "sgd"),
    "data.alpha": (
        "images with data.partition dirichlet",
        lambda run, m: _IMAGES[1](run, m) and run.data.partition in (None, "dirichlet"),
    ),
    "data.classes_per_participant": (
        "data.partition pathological",
        lambda run, m: run.data.partition == "pathological",
    ),
    **dict.fromkeys(("data.image", "data.augment"), _IMAGES),
    **dict.fromkeys(("data.block", "data.tokenizer"), _TEXT),
    "data.vocabulary": ("text with data.tokenizer bpe", lambda run, m: run.data.tokenizer == "bpe"),
    **dict.fromkeys(("data.image_column", "data.label_column"), _PARQUET),
}

_VARIANTS: dict[str, tuple[str, Callable[[Run], bool]]] = {
    "no-twins": ("twins", lambda run: run.twins is not None),
    "no-contrast": ("contrast.weight", lambda run: run.contrast.weight > 0),
    "no-overlap": ("overlap", lambda run: run.overlap > 0 or run.adapt.kind != "constant"),
    "no-momentum": ("server_momentum", lambda run: run.server_momentum > 0),
}
"""Variant -> the setting that it leaves out, and whether that is on."""


def warn_of_idle(given: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Tell of the given settings that none of the runs obeys, but for those that switch something off."""
    for key, value in given.items():
        meant, obeyed = _SETTINGS.get(key, ("", None))
        off = value in (0, False, None, "none")
        if obeyed and not off and not any(obeyed(run, get_method(run.method)) for run in runs):
            warnings.warn(f"{key} has no effect here: it is for {meant}", stacklevel=2)


def warn_of_variants(configs: Sequence[Config]) -> None:
    """Tell of the methods that leave out what is off."""
    for config in configs:
        base, _, variant = config.method.partition(":")
        setting, on = _VARIANTS.get(variant, ("", None))
        if on and not on(config):
            warnings.warn(f"{config.method} is the same as {base} here, as {setting} is off", stacklevel=2)
