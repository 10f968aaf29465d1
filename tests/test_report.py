import base64
import io
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msfusion.errors import UserError
from msfusion.records import Header, Round, Writer, read
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
    with Writer(directory, header) as writer:
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


def one(tmp_path: Path, *runs: Path) -> Page:
    write_report(runs, tmp_path / "report.html")
    return Page(tmp_path / "report.html")


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
    assert [row for row in page.rows if row[0] == "3"][1] == [
        "3", "121", "25.0%", "30,864", "3.08 MFLOP", "4.2 MB", "300 kB",
    ]  # fmt: skip


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


def test_everything_from_the_records_is_escaped(tmp_path: Path) -> None:
    evil = "<b>&\"'</b>"
    header = a_header(evil, 0, commit=evil, hardware=evil, config={evil: evil}, versions={evil: evil})
    header["model"] = {"name": evil, "parameters": 5, "axes": {evil: 32}}
    header["pictured"] = [evil]
    dropped = [{"participant": 1, "reason": evil}]
    page = one(tmp_path, write(tmp_path / "run", header, 0))
    with Writer.resume(tmp_path / "run", header, 0) as writer:
        writer.round(a_round(a_header("msfusion", 0), 0, dropped=dropped, windows={evil: {"0": [[0, 2]]}}))
    page = one(tmp_path, tmp_path / "run")
    assert "<b>" not in page.source
    assert page.source.count("&lt;b&gt;") > 10


def test_a_run_judged_by_loss_ranks_the_least_first(tmp_path: Path) -> None:
    runs = [write(tmp_path / m, a_header(m, 0, metric="loss"), 5) for m in ("msfusion", "fedavg")]
    page = one(tmp_path, *runs)
    assert [row[0] for row in page.rows[1:3]] == ["fedavg", "msfusion"]
    assert re.fullmatch(r"\d\.\d{3} \(1 seed\)", page.rows[1][1])
    assert page.texts["h4"][0] == "Loss over rounds"


def test_one_round_is_enough(tmp_path: Path) -> None:
    page = one(tmp_path, write(tmp_path / "run", a_header("msfusion", 0), 1))
    assert page.source.count("<svg xmlns:xlink") == 4
    assert "round 0" in page.texts["span"]
    assert page.row("msfusion")[-1] == "1"


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_run_without_evaluation_says_so(tmp_path: Path, rounds: int) -> None:
    runs = [
        write(tmp_path / "new", a_header("msfusion", 0), rounds, evaluation=None),
        write(tmp_path / "done", a_header("random", 0), 2),
    ]
    page = one(tmp_path, *runs)
    assert [row[0] for row in page.rows[1:3]] == ["random", "msfusion"]
    assert page.row("msfusion")[1] == "no evaluation yet"
    assert "Not shown, nothing to place: msfusion." in page.texts["figcaption"]
    alone = one(tmp_path, runs[0])
    assert "Nothing to show yet." in alone.texts["p"]


def test_a_participant_that_dropped_out_is_listed_and_grey(tmp_path: Path) -> None:
    dropped = [{"participant": 3, "reason": "lost its connection"}]
    page = one(tmp_path, write(tmp_path / "run", a_header("msfusion", 0), 2, dropped=dropped))
    assert ["0", "1", "3", "lost its connection"] in page.rows
    assert any("dropped out of a round 2 times" in text for text in page.texts["p"])
    assert set(pixels(page.images[4]).ravel()) == {90}


def test_overlap_and_shift_are_shown_where_they_vary(tmp_path: Path) -> None:
    header = a_header("msfusion", 0)
    with Writer(tmp_path / "run", header) as writer:
        for number in range(3):
            writer.round(a_round(header, number, overlap=0.1 * number, shift=None if number == 0 else 0.3))
    titles = one(tmp_path, tmp_path / "run").texts["h4"]
    assert "Overlap rate over rounds" in titles
    assert "Model shift over rounds" not in titles


def test_a_method_that_exchanges_nothing_has_no_place_over_bytes(tmp_path: Path) -> None:
    page = one(
        tmp_path,
        write(tmp_path / "a", a_header("standalone", 0), 3, bytes=0),
        write(tmp_path / "b", a_header("msfusion", 0), 3),
    )
    assert page.texts["figcaption"].count("Not shown, nothing to place: standalone.") == 1


def test_configurations_of_one_method_are_told_apart(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / f"{lr}-{seed}", a_header("msfusion", seed, config={"train": {"lr": lr}}), 2)
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    page = one(tmp_path, *runs)
    assert {row[0] for row in page.rows[1:3]} == {"msfusion (train.lr 0.1)", "msfusion (train.lr 0.2)"}


def test_other_models_and_metrics_have_their_own_section(tmp_path: Path) -> None:
    model = {"name": "gpt", "parameters": 99, "axes": AXES}
    page = one(
        tmp_path,
        write(tmp_path / "a", a_header("msfusion", 0), 2),
        write(tmp_path / "b", a_header("msfusion", 0, metric="loss", model=model), 2),
    )
    assert page.texts["h2"] == ["cnn on digits, 123,456 parameters", "gpt on digits, 99 parameters"]
    assert len(page.ids) == len(set(page.ids))


def test_of_many_participants_the_first_are_shown(tmp_path: Path) -> None:
    page = one(tmp_path, write(tmp_path / "run", a_header("msfusion", 0, participants=30), 2))
    assert len(page.images) == 2 * 13
    assert any("18 more participants" in text for text in page.texts["p"])


def test_many_methods_keep_their_own_looks(tmp_path: Path) -> None:
    from msfusion.report.charts import styles

    looks = styles([f"method {n}" for n in range(20)] + ["msfusion"])
    assert len(set(looks.values())) == 21
    assert looks["msfusion"] == styles(["fedavg", "msfusion"])["msfusion"]


def _bad(tmp_path: Path) -> Iterator[tuple[list[Path], str]]:
    same = [write(tmp_path / name, a_header("msfusion", 0), 1) for name in ("a", "b")]
    (tmp_path / "empty").mkdir()
    yield [], "at least one run"
    yield [tmp_path / "missing"], "No such file"
    yield [tmp_path / "empty"], "none holds records.jsonl"
    yield same, "with seed 0 in .*a and in .*b"


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    for runs, message in _bad(tmp_path):
        with pytest.raises(UserError, match=message):
            write_report(runs, tmp_path / "report.html")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = write(tmp_path / "run", a_header("msfusion", 0), 1)
    with pytest.raises(UserError, match=r'pip install "msfusion\[report\]"'):
        write_report([run], tmp_path / "report.html")


def test_a_report_does_not_wait_for_torch(tmp_path: Path) -> None:
    run = write(tmp_path / "run", a_header("msfusion", 0), 1)
    code = (
        "import sys; from pathlib import Path; from msfusion.report import write_report;"
        f"write_report([Path({str(run)!r})], Path({str(tmp_path / 'r.html')!r}));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestEvents:
    def test_without_tensorboard_the_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from msfusion.events import Events

        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(UserError, match=r'pip install "msfusion\[report\]"'):
            Events(tmp_path)

    def test_every_number_of_a_round_is_written(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        from msfusion.events import Events

        for start in (0, 1):  # the second time resumes after one round
            events = Events(tmp_path)
            for number in range(start, 3):
                events.round(a_round(a_header("msfusion", 0), number))
            events.close()
        read_back = EventAccumulator(str(tmp_path))
        read_back.Reload()
        assert "full model/accuracy" in read_back.Tags()["scalars"]
        assert [e.step for e in read_back.Scalars("windows/coverage")] == [0, 1, 2]
        assert "windows/shift" not in read_back.Tags()["scalars"]


def test_records_and_report_agree_on_what_a_run_is(tmp_path: Path) -> None:
    run = write(tmp_path / "run", a_header("msfusion", 0), 2)
    with (run / "records.jsonl").open("ab") as file:
        file.write(b'{"kind":"round","round":2')
    assert len(read(run).rounds) == 2
    assert one(tmp_path, run).row("msfusion")[-1] == "2"
