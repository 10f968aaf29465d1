import base64
import io
import math
import random
import re
from collections.abc import Sequence
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msfusion.records import Header, Round, Writer
from msfusion.report import write_report

AXES = {"conv1.out": 32, "fc.out": 64}
SHARES = {"fedavg": 1.0, "msfusion": 0.25, "random": 0.2}


def a_header(method: str, seed: int, participants: int = 10, **changes: Any) -> Header:
    share = SHARES.get(method, 0.5)
    facts = [
        {
            "participant": n, "examples": 100 + 7 * n, "share": share, "parameters": int(123_456 * share),
            "flops_per_step": 12.34e6 * share, "memory_bytes": 4_200_000, "bytes_per_round": 1.2e6 * share,
        }
        for n in range(participants)
    ]  # fmt: skip
    header: dict[str, Any] = {
        "kind": "header", "format": 1, "method": method, "seed": seed, "metric": "accuracy",
        "config": {"method": method, "seed": seed, "data": {"name": "digits"}, "train": {"lr": 0.05}},
        "versions": {"msfusion": "0.1.0", "torch": "2.13.0"}, "commit": None, "hardware": "2 cores, x86_64",
        "model": {"name": "cnn", "parameters": 123_456, "axes": AXES},
        "participants": facts, "pictured": [] if method == "fedavg" else list(AXES),
    }  # fmt: skip
    return header | changes  # type: ignore[return-value]


def windows_of(method: str, units: int, round: int, participant: int, draw: random.Random) -> list[list[int]]:
    width = units // 4
    if method == "random":
        return [[u, u + 1] for u in sorted(draw.sample(range(units), width))]
    start = (participant * width // 2 + 3 * round) % units
    stop = start + width
    return [[start, stop]] if stop <= units else [[0, stop - units], [start, units]]


def a_round(header: Header, number: int, **changes: Any) -> Round:
    method, share = header["method"], SHARES.get(header["method"], 0.5)
    draw = random.Random(f"{method} {header['seed']} {number}")
    everyone = [p["participant"] for p in header["participants"]]
    windows = {
        axis: {str(n): windows_of(method, AXES[axis], number, n, draw) for n in everyone}
        for axis in header["pictured"]
    }
    accuracy = (0.5 + 0.4 * share) * (1 - math.exp(-(number + 1) / 10)) + draw.uniform(0, 0.04)
    record: dict[str, Any] = {
        "kind": "round", "round": number, "participants": everyone, "dropped": [], "train_loss": 1.5,
        "flops": 10 * 12.34e6 * share * len(everyone), "bytes": 1.2e6 * share * len(everyone),
        "coverage": min(1.0, 0.3 + share * number / 5), "overlap": 0.0, "shift": None, "windows": windows,
        "seconds": 0.1, "evaluation": {"accuracy": accuracy, "loss": 2 - accuracy, "examples": 360},
    }  # fmt: skip
    return record | changes  # type: ignore[return-value]


def write(directory: Path, header: Header, rounds: int, **changes: Any) -> Path:
    with closing(Writer(directory, header)) as writer:
        for number in range(rounds):
            writer.round(a_round(header, number, **changes))
    return directory


def study(directory: Path, methods: Sequence[str] = tuple(SHARES), rounds: int = 12) -> Path:
    """Ten participants, three methods, three seeds."""
    for method in methods:
        for seed in range(3):
            write(directory / method / f"seed-{seed}", a_header(method, seed), rounds)
    return directory


class Page(HTMLParser):
    """The texts, table rows and images of a page, and everything that a browser would load."""

    VOID = frozenset({"meta", "img", "br", "line"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loaded += [v for k, v in values.items() if k in ("src", "href", "xlink:href", "srcset", "data")]
        self.ids += [v for k, v in values.items() if k == "id"]
        if tag == "img":
            self.images.append(values["src"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts.setdefault(self.open[-1], []).append(data.strip())
        if "tr" in self.open and self.open[-1] in ("td", "th", "span"):
            self.rows[-1][-1] += data.strip()

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = tmp_path_factory.mktemp("study")
    write_report([study(root / "runs")], root / "report.html")
    return Page(root / "report.html")


def test_the_summary_has_a_row_per_method_best_first(page: Page) -> None:
    assert page.rows[0] == [
        "method", "final accuracy", "coverage at the end", "share of the model", "parameters",
        "FLOPs per step", "bytes per round", "rounds",
    ]  # fmt: skip
    assert [row[0] for row in page.rows[1:4]] == ["fedavg", "msfusion", "random"]
    assert re.fullmatch(r"\d\d\.\d% ± \d\.\d \(sd over 3 seeds\)", page.rows[1][1])
    assert page.row("msfusion")[2:] == ["85.0%", "25.0%", "30,864", "3.08 MFLOP", "300 kB", "12"]


def test_the_final_metric_is_the_mean_and_deviation_of_the_last_evaluations(page: Page) -> None:
    scores = [a_round(a_header("random", seed), 11)["evaluation"]["accuracy"] for seed in range(3)]  # type: ignore[index]
    expected = f"{100 * np.mean(scores):.1f}% ± {100 * np.std(scores, ddof=1):.1f} (sd over 3 seeds)"
    assert page.row("random")[1] == expected


def test_the_charts_are_those_that_say_something(page: Page) -> None:
    titles = page.texts["h4"]
    assert titles[:4] == [
        "Accuracy over rounds",
        "Accuracy over FLOPs per participant",
        "Accuracy over bytes per participant",
        "Coverage over rounds",
    ]
    assert not any(title.startswith(("Overlap", "Model shift")) for title in titles)
    assert page.source.count("<svg xmlns:xlink") == 4


def test_every_participant_is_listed_with_its_costs(page: Page) -> None:
    assert ["3", "121", "25.0%", "30,864", "3.08 MFLOP", "4.2 MB", "300 kB"] in page.rows


def test_the_page_stands_alone(page: Page) -> None:
    assert page.open == []
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.loaded)
    namespaces = re.findall(r"https?://[^\s\"'<]*", page.source)
    assert set(namespaces) == {"http://www.w3.org/1999/xlink"}
    assert not re.search(r"@import|<script|<link|url\((?!#)", page.source)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_follows_the_theme(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.source
    assert "#010203" not in page.source
    assert "fill: var(--ink)" in page.source
    assert "stroke: var(--rule)" in page.source


def pixels(source: str) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
    return np.asarray(image.convert("RGBA"))[::-1, :, 3]


@pytest.mark.parametrize(("method", "offset"), [("msfusion", 0), ("random", 22)])
def test_the_picture_shows_exactly_the_recorded_windows(page: Page, method: str, offset: int) -> None:
    """Strips come by method, axis and participant, "all" first; fedavg cuts nothing and has none."""
    assert len(page.images) == 2 * 2 * 11
    header = a_header(method, 0)
    for axis, (name, units) in enumerate(AXES.items()):
        strips = page.images[offset + 11 * axis :][:11]
        expected = np.zeros((10, units, 12), dtype=bool)
        for number in range(12):
            for n, runs in a_round(header, number)["windows"][name].items():
                for first, stop in runs:
                    expected[int(n), first:stop, number] = True
        for n in range(10):
            assert (pixels(strips[1 + n]) == np.where(expected[n], 255, 0)).all()
        assert ((pixels(strips[0]) > 0) == expected.any(axis=0)).all()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    root = study(tmp_path / "runs", ["msfusion", "random"], rounds=3)
    write_report([root], tmp_path / "a.html")
    write_report([root / "random", root / "msfusion", root], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
