"""``msfusion axes``: which axes a model has."""

import json as json_format
from collections.abc import Mapping
from typing import Any

from msfusion.capture import capture
from msfusion.commands.output import emit, table
from msfusion.core.axes import AxisInfo, AxisMap, axes_of
from msfusion.models import build


def run(model: str, options: Mapping[str, Any], *, json: bool) -> None:
    """Print every axis and the tensors that follow it."""
    module, example = build(model, None, options)
    axes = capture(module, example).axes
    emit(json_format.loads(axes.to_json()), _text(axes), json=json)


def _text(axes: AxisMap) -> object:
    rows = [
        (name, str(info.size), _kind(info), ", ".join(_followers(axes, name)))
        for name, info in axes.axes.items()
    ]
    out = table(("axis", "units", "kind", "tensors that follow it"), rows)
    if axes.unknown:
        out.caption = "pinned by operations without a rule: " + ", ".join(sorted(axes.unknown))
    return out


def _kind(info: AxisInfo) -> str:
    return f"whole: {info.whole}" if info.whole else "residual" if info.residual else "inner"


def _followers(axes: AxisMap, axis: str) -> list[str]:
    return [
        f"{tensor}[{', '.join(map(str, dims))}]"
        for tensor, dims in axes.tensors.items()
        if any(axis in axes_of(dim) for dim in dims)
    ]
