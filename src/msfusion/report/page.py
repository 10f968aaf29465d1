"""Puts the page together: what is shown for a task and its methods, and the one file it becomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from msfusion.errors import UserError
from msfusion.records import Run
from msfusion.report import series, tables
from msfusion.report.charts import Chart, Style, XUnit, YUnit, chart, styles
from msfusion.report.ends import drawn, lengths
from msfusion.report.numbers import count, many
from msfusion.report.picture import Picture, picture
from msfusion.report.runs import Group, Task, differing, find, rank, tasks
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
class Plan:
    """What a chart is to show: a line per method of `ys` over `xs`."""

    title: str
    x: XUnit
    y: YUnit
    xs: Read
    ys: Read


@dataclass(frozen=True)
class Figure:
    """A chart, or what to say in its place; `absent` are the methods that it cannot show."""

    title: str
    chart: Chart | None
    shown: list[str]
    absent: list[str]


@dataclass(frozen=True)
class Section:
    """One task; `scored` says whether any run has an evaluation, `undrawn` of which methods
    some seeds are in no chart, and how many, `differing` which settings are not the same for all methods."""

    title: str
    metric: str
    parameters: str
    rows: list[tables.Row]
    scored: bool
    figures: list[Figure]
    methods: list[Method]
    dropouts: int
    undrawn: list[str]
    differing: list[str]


def write_report(runs: Sequence[str | Path], out: str | Path) -> None:
    """Writes one self-contained HTML page about the runs to `out`; the same runs give the same bytes.

    runs: run directories, or directories above them. UserError where there is no run, where two runs have
    the same method, configuration and seed, where ``out`` is there and no HTML page, and without matplotlib.
    """
    if isinstance(runs, str | Path):
        raise UserError(f"expected a list of run directories, got {runs!r} alone: give [{str(runs)!r}]")
    out = Path(out)
    check_page_at(out)
    found = find([Path(run) for run in runs])
    compared = tasks(found)
    looks = styles(sorted({group.label for task in compared for group in task.groups}, key=rank))
    sections = [_section(task, looks, number) for number, task in enumerate(compared)]
    page = _render(sections, looks, f"{many(len(looks), 'method')}, {many(len(found), 'run')}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"expected to write {out}, but: {error.strerror}; give another file") from error


def check_page_at(out: Path) -> None:
    """Raise UserError where ``write_report`` would replace something else than a page."""
    if out.is_file() and out.stat().st_size and not _is_page(out):
        raise UserError(f"expected a file that is absent or an HTML page, got {out}: name another one")


def _is_page(file: Path) -> bool:
    with file.open("rb") as page:
        return page.read(15).lower().startswith(b"<!doctype html")


def _render(sections: Sequence[Section], looks: dict[str, Style], counted: str) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files(__package__) / "report.html").read_text(encoding="utf-8"))
    return template.render(sections=sections, looks=looks, counted=counted, cost_columns=tables.COSTS)


def _section(task: Task, looks: dict[str, Style], number: int) -> Section:
    rows = tables.summary(task.groups, task.metric)
    groups = {group.label: group for group in task.groups}
    rounds = lengths(task.groups)
    seeds = {label: drawn(group, rounds[label]) for label, group in groups.items()}
    return Section(
        task.title,
        task.metric,
        count(task.groups[0].first.header["model"]["parameters"]),
        rows,
        _scored(task),
        [_figure(seeds, looks, plan, number) for plan in _plans(task)],
        [_method(groups[row.label], looks[row.label]) for row in rows],
        sum(len(r["dropped"]) for group in task.groups for run in group.runs for r in run.rounds),
        [
            f"{len(group.runs) - len(seeds[label])} of {len(group.runs)} of {label}"
            for label, group in groups.items()
            if len(seeds[label]) < len(group.runs)
        ],
        differing(task.groups),
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


def _plans(task: Task) -> list[Plan]:
    """Every chart of a task; overlap rate and shift only where they say something, and the training loss
    where nobody has scored the model, as under Flower."""
    name = task.metric
    unit: YUnit = "share" if name == "accuracy" else "number"
    measured, title = series.metric(name), name.capitalize()
    scores = [
        Plan(f"{title} over rounds", "round", unit, series.rounds, measured),
        Plan(f"{title} over FLOPs per participant", "FLOP", unit, series.spent("flops"), measured),
        Plan(f"{title} over bytes per participant", "B", unit, series.spent("bytes"), measured),
    ]
    loss = Plan("Training loss over rounds", "round", "number", series.rounds, series.field("train_loss"))
    plans = [
        *(scores if _scored(task) else [loss]),
        Plan("Coverage over rounds", "round", "share", series.rounds, series.field("coverage")),
    ]
    extra = [
        Plan("Overlap rate over rounds", "round", "share", series.rounds, series.field("overlap")),
        Plan("Model shift over rounds", "round", "number", series.rounds, series.field("shift")),
    ]
    runs = [run for group in task.groups for run in group.runs]
    return plans + [plan for plan in extra if any(series.varies(plan.ys(run)) for run in runs)]


def _scored(task: Task) -> bool:
    return any(r["evaluation"] is not None for group in task.groups for run in group.runs for r in run.rounds)


def _figure(seeds: Mapping[str, Sequence[Run]], looks: dict[str, Style], plan: Plan, number: int) -> Figure:
    lines = {label: series.line(runs, plan.xs, plan.ys) for label, runs in seeds.items()}
    # A method that spends nothing has no place on a cost axis.
    shown = [label for label, line in lines.items() if line.x and (plan.x == "round" or line.x[-1] > 0)]
    styled = [(looks[label], lines[label]) for label in shown]
    drawn = chart(plan.title, plan.x, plan.y, styled, number) if shown else None
    return Figure(plan.title, drawn, shown, [label for label in lines if label not in shown])
