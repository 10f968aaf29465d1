"""Numbers as people read them, always with their unit."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

Metric = Literal["accuracy", "loss"]
NOTHING = "–"
_PREFIXES = ["", "k", "M", "G", "T", "P", "E"]


def si(value: float | None, unit: str) -> str:
    """Three significant digits and a decimal prefix: 12.3 MFLOP, 1.2 MB, 999 B."""
    if value is None:
        return NOTHING
    digits, prefix = float(f"{value:.3g}"), 0
    while abs(digits) >= 1000 and prefix < len(_PREFIXES) - 1:
        digits, prefix = float(f"{digits / 1000:.3g}"), prefix + 1
    return f"{digits:g} {_PREFIXES[prefix]}{unit}".rstrip()


def percent(value: float | None) -> str:
    """0.2731 -> 27.3%."""
    return NOTHING if value is None else f"{100 * value:.1f}%"


def count(value: float | None) -> str:
    """1234567 -> 1,234,567."""
    return NOTHING if value is None else f"{value:,.0f}"


def many(number: int, noun: str) -> str:
    """1 seed, 3 seeds."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def span(values: Sequence[int]) -> str:
    """40, or 38 to 40 when they differ."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def mean_max(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Mean and maximum, or the one value when both read the same."""
    if not values:
        return NOTHING
    return mean_and_most(statistics.fmean(values), max(values), text)


def mean_and_most(mean: float, most: float, text: Callable[[float], str]) -> str:
    """Both, or one where they read the same."""
    return text(mean) if text(mean) == text(most) else f"{text(mean)}, max {text(most)}"


def finals(
    scores: Sequence[float], metric: Metric, lost: Mapping[str, int], runs: int, *, over: bool = False
) -> str:
    """The scores of some runs, and how many have none; lost: why -> how many; over: whether some have ended,
    and no score is to come."""
    missing = "no evaluation" if over else "no evaluation yet"
    parts = (
        [spread(scores, metric) if scores else missing] if scores or over or not any(lost.values()) else []
    )
    return ", ".join([*parts, *(f"{number} of {runs} {why}" for why, number in lost.items() if number)])


def spread(values: Sequence[float], metric: Metric) -> str:
    """Mean and sample standard deviation over seeds, one at least: 61.2% ± 0.8 (sd over 3 seeds)."""
    mean = statistics.fmean(values)
    scale, form, unit = (100, ".1f", "%") if metric == "accuracy" else (1, _form(mean), "")
    text = f"{scale * mean:{form}}{unit}"
    if len(values) == 1:
        return f"{text} (1 seed)"
    return f"{text} ± {scale * statistics.stdev(values):{form}} (sd over {len(values)} seeds)"


def _form(loss: float) -> str:
    """Three decimals, or four significant digits where a loss is too small or too large for them."""
    return ".3f" if loss == 0 or 0.01 <= abs(loss) < 1e6 else ".4g"
