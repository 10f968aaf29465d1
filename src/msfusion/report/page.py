"""Puts the page together: what is shown for a task and its methods, and the one file it becomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from msfusion.errors import UserError
from msfusion.records import Run
from msfusion.report import series, tables
from msfusion.report.charts import Chart, Style, XUnit, YUnit, chart, styles
from msfusion.report.numbers import many
from msfusion.report.picture import Picture, picture
from msfusion.report.runs import Group, Task, find, tasks
from msfusion.report.series import Track

Read = Callable[[Run], Track]


@dataclass(frozen=True)
class Method:
    """One method's part of a task; the picture and the costs are those of its first seed."""

    label: str
    style: Style
    seed: int
    picture: Picture
    costs: list[tuple[str, ...]]
    dropouts: list[tuple[str, str, str, str]]
    settings: tables.Facts
    origin: tables.Facts


@dataclass(frozen=True)
class Figure:
    """A chart, or what to say in its place; `absent` are the methods that it cannot show."""

    title: str
    chart: Chart | None
    shown: list[str]
    absent: list[str]


@dataclass(frozen=True)
class Section:
    """One task."""

    title: str
    metric: str
    rows: list[tables.Row]
    figures: list[Figure]
    methods: list[Method]
    dropouts: int


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Writes one self-contained HTML page about the runs to `out`; the same runs give the same bytes.

    runs: run directories, or directories above them. UserError where there is no run, where two runs have
    the same method, configuration and seed, and without matplotlib.
    """
    found = find(runs)
    compared = tasks(found)
    looks = styles(sorted({group.label for task in compared for group in task.groups}))
    sections = [_section(task, looks, number) for number, task in enumerate(compared)]
    page = _render(sections, looks, f"{many(len(looks), 'method')}, {many(len(found), 'run')}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"expected to write {out}, but: {error.strerror}; give another file") from error


def _render(sections: Sequence[Section], looks: dict[str, Style], counted: str) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files(__package__) / "report.html").read_text(encoding="utf-8"))
    return template.render(sections=sections, looks=looks, counted=counted, cost_columns=tables.COSTS)


def _section(task: Task, looks: dict[str, Style], number: int) -> Section:
    methods = [_method(group, looks[group.label]) for group in task.groups]
    rows = tables.summary(task.groups, task.metric)
    order = [row.label for row in rows]
    return Section(
        task.title,
        task.metric,
        rows,
        [_figure(task, looks, number, *plan) for plan in _plans(task)],
        sorted(methods, key=lambda method: order.index(method.label)),
        sum(len(r["dropped"]) for group in task.groups for run in group.runs for r in run.rounds),
    )


def _method(group: Group, style: Style) -> Method:
    run = group.first
    return Method(
        group.label,
        style,
        run.header["seed"],
        picture(run, style.colour),
        tables.costs(run.header),
        tables.dropouts(group),
        tables.settings(run),
        tables.origin(group),
    )


Plan = tuple[str, XUnit, YUnit, Read, Read]


def _plans(task: Task) -> list[Plan]:
    """Title, units and values of each chart; overlap rate and shift only where they say something."""
    name = task.metric
    unit: YUnit = "share" if name == "accuracy" else "number"
    measured, title = series.metric(name), name.capitalize()
    plans: list[Plan] = [
        (f"{title} over rounds", "round", unit, series.rounds, measured),
        (f"{title} over FLOPs per participant", "FLOP", unit, series.spent("flops"), measured),
        (f"{title} over bytes per participant", "B", unit, series.spent("bytes"), measured),
        ("Coverage over rounds", "round", "share", series.rounds, series.field("coverage")),
    ]
    extra: list[Plan] = [
        ("Overlap rate over rounds", "round", "share", series.rounds, series.field("overlap")),
        ("Model shift over rounds", "round", "number", series.rounds, series.field("shift")),
    ]
    runs = [run for group in task.groups for run in group.runs]
    return plans + [plan for plan in extra if any(series.varies(plan[4](run)) for run in runs)]


def _figure(
    task: Task, looks: dict[str, Style], number: int, title: str, x: XUnit, y: YUnit, xs: Read, ys: Read
) -> Figure:
    lines = {group.label: series.line(group.runs, xs, ys) for group in task.groups}
    # A method that spends nothing has no place on a cost axis.
    shown = [label for label, line in lines.items() if line.x and (x == "round" or line.x[-1] > 0)]
    drawn = chart(title, x, y, [(looks[label], lines[label]) for label in shown], number) if shown else None
    return Figure(title, drawn, shown, [label for label in lines if label not in shown])
