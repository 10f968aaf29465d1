"""Line charts as inline SVG: same lines, same bytes; text and axes follow the page's theme."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape

from msfusion.errors import optional
from msfusion.report.numbers import si
from msfusion.report.series import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XUnit = Literal["round", "FLOP", "B"]
YUnit = Literal["share", "number"]

# Okabe and Ito's colours, told apart with any colour vision; without yellow, which white drowns, and
# with grey for black, so that one palette serves light and dark pages.
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#808080"]
# From bottom to top: through the gaps of a line one sees those that it runs over.
_DASHES = ["", "5 2", "5 2 1.5 2", "1.5 1.5"]
_THEME = {"#010203": "var(--ink)", "#040506": "var(--rule)"}  # drawn colour -> what the page makes of it
_INK, _RULE = _THEME
_FEW = 25  # up to so many points are marked
_WIDE = 8  # costs that differ by more than this factor need a logarithmic axis


@dataclass(frozen=True)
class Style:
    """How one method looks everywhere on the page; `dashes` is empty for a solid line."""

    colour: str
    dashes: str

    @property
    def drawn(self) -> str:
        """The dashes of a line four wide."""
        return " ".join(f"{2 * float(length):g}" for length in self.dashes.split()) or "none"


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    title: str
    svg: Markup


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style per label, in their order; neighbours differ in colour and dashes."""
    n, m = len(_COLOURS), len(_DASHES)  # without a common factor: n x m styles
    return {label: Style(_COLOURS[i % n], _DASHES[i % m]) for i, label in enumerate(labels)}


def chart(title: str, x: XUnit, y: YUnit, lines: Sequence[tuple[Style, Line]], number: int = 0) -> Chart:
    """Means as lines, least to greatest over seeds as bands. UserError without matplotlib.

    number: tells apart charts of the same title on one page.
    """
    matplotlib, figure = _figure()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}):
        axes = figure.add_subplot()
        for style, points in sorted(lines, key=lambda line: _DASHES.index(line[0].dashes)):
            _draw(axes, style, points)
        _dress(axes)
        _scale_x(axes, x, [points for _, points in lines])
        _scale_y(axes, y)
        return Chart(title, _inline(figure, title, number))


def _figure() -> tuple[Any, "Figure"]:
    what = "matplotlib, which draws the charts"
    matplotlib, figure = (optional(m, what, "msfusion[report]") for m in ("matplotlib", "matplotlib.figure"))
    return matplotlib, figure.Figure(figsize=(5.4, 3.3), layout="constrained")


def _draw(axes: "Axes", style: Style, points: Line) -> None:
    dash: Any = (0, tuple(map(float, style.dashes.split()))) if style.dashes else "-"
    marker = "o" if len(points.x) <= _FEW else ""
    axes.fill_between(points.x, points.low, points.high, color=style.colour, alpha=0.18, linewidth=0)
    look: dict[str, Any] = {"linestyle": dash, "marker": marker, "markersize": 3.5, "linewidth": 1.8}
    axes.plot(points.x, points.mean, color=style.colour, **look)


def _dress(axes: "Axes") -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_RULE)
    axes.tick_params(colors=_RULE, labelcolor=_INK)
    axes.grid(color=_RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def _scale_x(axes: "Axes", unit: XUnit, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    if unit == "round":
        axes.set_xlabel("round", color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        return
    totals = [points.x[-1] for points in lines if points.x and points.x[-1] > 0]
    axes.set_xlabel(f"{'FLOPs' if unit == 'FLOP' else 'bytes'} per participant so far", color=_INK)
    if totals and max(totals) > _WIDE * min(totals) and all(v > 0 for points in lines for v in points.x):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_ticks(unit)))


def _ticks(unit: str) -> Callable[[float, object], str]:
    return lambda value, _: si(value, unit) if value else "0"


def _scale_y(axes: "Axes", unit: YUnit) -> None:
    from matplotlib.ticker import PercentFormatter

    if unit == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _inline(figure: "Figure", title: str, number: int) -> Markup:
    """The figure's SVG fit for a page: ids that no other chart has, no fixed size, the page's colours."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    prefix = re.sub(r"\W+", "-", f"{title.lower()}-{number}")
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    for drawn, themed in _THEME.items():
        text = text.replace(drawn, themed)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view
    body = text[text.index(">") + 1 :]
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(title)}"'
    return Markup(f"{head} {view[0]}>{body}")
