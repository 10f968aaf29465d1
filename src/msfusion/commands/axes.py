"""``msfusion axes``: which axes a model has, and the proof that it has them."""

import json as json_format
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group

from msfusion.capture import TOLERANCE, capture, permutation_errors
from msfusion.capture.check import draws
from msfusion.capture.silence import silence_errors
from msfusion.commands.output import emit, table
from msfusion.config import load_axes
from msfusion.core.axes import AxisInfo, AxisMap, axes_of
from msfusion.core.widths import few, nothing_to_cut
from msfusion.models import build_without_values, is_from_file

_VERDICTS = {True: "right", False: "WRONG", None: "not proved"}

_NOISY = (
    "not proved, as the forward draws random numbers in eval mode, which do not move with the units; check"
    " the model without them"
)


def run(
    model: str, options: Mapping[str, Any], declared: Path | None, *, check: bool = False, json: bool
) -> None:
    """Print every axis and the tensors that follow it; with ``check`` prove them, and exit with 1 where one
    is wrong."""
    module, example = build_without_values(model, None, options)
    own = is_from_file(model)  # who may train it with a loss of their own
    captured = capture(module, example, overrides=load_axes(declared), logits_alone=not own)
    axes = captured.axes
    if not axes.cuttable:
        raise nothing_to_cut(axes)
    data = json_format.loads(axes.to_json())
    if not check:
        emit(data, _text(axes), json=json)
        return
    moved = permutation_errors(module, example, {}, axes, logits_alone=not own)
    silenced = silence_errors(module, captured)
    off = [name for name in axes.axes if max(moved[name], silenced.get(name, 0.0)) > TOLERANCE]
    noisy = bool(off) and draws(module, example, {}, logits_alone=not own)
    right = {name: name not in off or (None if noisy else False) for name in axes.axes}
    proof = {
        name: {"permuted": moved[name], "silenced": silenced.get(name), "right": right[name]}
        for name in axes.axes
    }
    emit(data | {"check": proof}, _proof(axes, moved, silenced, right), json=json)
    if off:
        print(_NOISY if noisy else "wrong", ", ".join(off), sep=": ", file=sys.stderr)
        raise SystemExit(1)


def _text(axes: AxisMap) -> object:
    rows = [
        (name, str(info.size), _kind(info), few(_followers(axes, name))) for name, info in axes.axes.items()
    ]
    parts = [table(("axis", "units", "kind", "dimensions that follow it"), rows)]
    if pinned := _pinned_by_reason(axes):
        reasons = [(reason, few(places)) for reason, places in pinned.items()]
        parts.append(table(("never cut because", "dimensions"), reasons))
    for column in (*parts[0].columns[2:], *(column for part in parts[1:] for column in part.columns)):
        column.justify = "left"
    return Group(*parts, *_unknown(axes))


def _unknown(axes: AxisMap) -> list[str]:
    if not axes.unknown:
        return []
    named = ", ".join(f"{name} ({times} times)" for name, times in sorted(axes.unknown.items()))
    return [f"operations without a rule, all that they touch stays whole: {named}"]


def _proof(
    axes: AxisMap,
    moved: Mapping[str, float],
    silenced: Mapping[str, float],
    right: Mapping[str, bool | None],
) -> object:
    rows = [
        (
            name,
            str(info.size),
            f"{moved[name]:.1e}",
            f"{silenced[name]:.1e}" if name in silenced else "-",
            _VERDICTS[right[name]],
        )
        for name, info in axes.axes.items()
    ]
    out = table(("axis", "units", "change when permuted", "narrow against silenced", "proof"), rows)
    return Group(out, f"changes relative to the outputs; right up to {TOLERANCE:.0e}", *_unknown(axes))


def _kind(info: AxisInfo) -> str:
    return f"whole: {info.whole}" if info.whole else "residual" if info.residual else "inner"


def _followers(axes: AxisMap, axis: str) -> list[str]:
    """``tensor:dimension`` of all dimensions that the axis governs."""
    return [
        f"{tensor}:{i}"
        for tensor, dims in axes.tensors.items()
        for i, dim in enumerate(dims)
        if axis in axes_of(dim)
    ]


def _pinned_by_reason(axes: AxisMap) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for place, reason in axes.pinned.items():
        found.setdefault(reason, []).append(place)
    return found
