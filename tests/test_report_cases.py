"""Runs of every kind: other metrics, unfinished, dropped out, ablated, broken."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from msfusion.commands.compare import row_of
from msfusion.commands.tuning import score
from msfusion.errors import UserError
from msfusion.records import Writer, read
from msfusion.report import write_report
from msfusion.report.charts import chart, styles
from msfusion.report.ends import drawn
from msfusion.report.numbers import spread
from msfusion.report.runs import Group, find
from msfusion.report.series import Line, spent
from test_report import AXES, Page, a_header, a_round, pixels, write


def one(tmp_path: Path, *runs: Path) -> Page:
    write_report(runs, tmp_path / "report.html")
    return Page(tmp_path / "report.html")


def test_everything_from_the_records_is_escaped(tmp_path: Path) -> None:
    evil = "<b>&\"'</b>"
    header = a_header(evil, 0, commit=evil, hardware=evil, config={evil: evil}, versions={evil: evil})
    header["model"] = {"name": evil, "parameters": 5, "axes": {evil: 32}}
    header["pictured"] = [evil]
    dropped = [{"participant": 1, "reason": evil}]
    page = one(tmp_path, write(tmp_path / "run", header, 0))
    with closing(Writer.resume(tmp_path / "run", header, 0)) as writer:
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


@pytest.mark.parametrize(("stated", "mean"), [({"participants": 4}, 25.0), ({}, 100.0)])
def test_what_is_spent_is_the_mean_over_all_also_over_those_known_later(
    tmp_path: Path, stated: dict[str, int], mean: float
) -> None:
    """A peer lists those that it knew when it began its file: itself, where it was alone."""
    header = a_header("msfusion", 0, participants=1)
    header["config"] |= stated
    run = read(write(tmp_path / "run", header, 2, bytes=100.0))
    assert spent("bytes")(run) == {0: mean, 1: 2 * mean}


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
    assert page.row("msfusion")[1] == ("no evaluation" if rounds else "no evaluation yet")
    assert "Not shown, nothing to place: msfusion." in page.texts["figcaption"]
    assert any(text.startswith("Best final accuracy first.") for text in page.texts["p"])
    alone = one(tmp_path, runs[0])
    assert alone.texts["h4"][:2] == ["Training loss over rounds", "Coverage over rounds"]
    assert ("Nothing to show yet." in alone.texts["p"]) == (rounds == 0)
    assert not any("Best final" in text for text in alone.texts["p"])


def test_a_participant_that_dropped_out_is_listed_and_grey(tmp_path: Path) -> None:
    dropped = [{"participant": 3, "reason": "lost its connection"}]
    page = one(tmp_path, write(tmp_path / "run", a_header("msfusion", 0), 2, dropped=dropped))
    assert ["0", "1", "3", "lost its connection"] in page.rows
    assert any("was not merged in its round 2 times" in text for text in page.texts["p"])
    assert set(pixels(page.images[4]).ravel()) == {90}


def test_overlap_and_shift_are_shown_where_they_vary(tmp_path: Path) -> None:
    header = a_header("msfusion", 0)
    with closing(Writer(tmp_path / "run", header)) as writer:
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
    assert page.texts["h2"] == ["cnn on digits: accuracy", "gpt on digits: loss"]
    assert len(page.ids) == len(set(page.ids))


def test_other_data_have_their_own_section_that_says_which(tmp_path: Path) -> None:
    """Settings of the data, the participants, the numbers of examples: a table ranks what can be compared."""
    few = {"accuracy": 0.5, "loss": 1.0, "examples": 100}
    data = {"name": "digits", "limit": 400}
    page = one(
        tmp_path,
        write(tmp_path / "a", a_header("msfusion", 0), 1),
        write(tmp_path / "b", a_header("fedavg", 0), 1),
        write(tmp_path / "limit", a_header("msfusion", 0, config={"data": data}), 1),
        write(tmp_path / "more", a_header("msfusion", 0, participants=11), 1),
        write(tmp_path / "test", a_header("msfusion", 0), 1, evaluation=few),
    )
    heads = page.texts["h2"]
    assert len(heads) == 4
    assert sum("data.limit 400" in head for head in heads) == 1
    assert sum("participants 11" in head for head in heads) == 1
    assert sum("test examples 100" in head for head in heads) == 1
    assert len([row for row in page.rows if row[0] == "fedavg"]) == 1


def test_a_run_before_its_first_evaluation_stays_with_its_like(tmp_path: Path) -> None:
    new = write(tmp_path / "new", a_header("msfusion", 0), 0)
    done = write(tmp_path / "done", a_header("random", 0), 2)
    assert one(tmp_path, new, done).texts["h2"] == ["cnn on digits: accuracy"]


def test_a_run_that_did_not_know_all_participants_stays_with_its_like(tmp_path: Path) -> None:
    """Among peers and under Flower the header names those that were there at the start."""
    config = {"participants": 10, "data": {"name": "digits"}}
    runs = [
        write(tmp_path / str(seed), a_header("msfusion", seed, participants, config=config), 1)
        for seed, participants in enumerate((10, 7))
    ]
    assert "2 seeds" in one(tmp_path, *runs).row("msfusion")[1]


def test_settings_that_differ_between_methods_of_one_table_are_named(tmp_path: Path) -> None:
    """As with a learning rate that is tuned for each method, which stays in one table."""
    runs = [
        write(tmp_path / method, a_header(method, 0, config={"train": {"lr": lr, "steps": 5}}), 1)
        for method, lr in (("msfusion", 0.1), ("fedavg", 0.2), ("random", 0.1))
    ]
    page = one(tmp_path, *runs)
    assert len(page.texts["h2"]) == 1
    said = "Settings that are not the same for all: train.lr: 0.1 (msfusion, random), 0.2 (fedavg)."
    assert said in page.texts["p"]
    assert "Settings that are not" not in one(tmp_path, runs[0], runs[2]).source


def test_every_version_that_computed_a_part_of_a_run_is_shown(tmp_path: Path) -> None:
    header = a_header("msfusion", 0)
    run = write(tmp_path / "run", header, 1)
    newer = header | {"versions": {"msfusion": "0.2.0", "torch": "2.13.0"}}
    with pytest.warns(UserWarning, match="goes on with msfusion 0.2.0"):
        writer = Writer.resume(run, newer, 1)  # type: ignore[arg-type]
    with closing(writer):
        writer.round(a_round(header, 1))
    page = one(tmp_path, run)
    assert ["msfusion", "0.1.0, 0.2.0"] in page.rows
    assert ["torch", "2.13.0"] in page.rows


def test_of_many_participants_the_first_are_shown(tmp_path: Path) -> None:
    page = one(tmp_path, write(tmp_path / "run", a_header("msfusion", 0, participants=30), 2))
    assert len(page.images) == 2 * 13
    assert any("18 more participants" in text for text in page.texts["p"])


def test_many_methods_keep_their_own_looks() -> None:
    looks = styles([f"method {n}" for n in range(21)])
    assert len(set(looks.values())) == 21


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_equal_lines_the_one_with_gaps_lies_on_top(order: tuple[int, int]) -> None:
    first, second = styles(["a", "b"]).values()
    assert (first.dashes, bool(second.dashes)) == ("", True)
    line = Line((0, 1), (0.3, 0.4), (0.3, 0.4), (0.3, 0.4))
    lines = [((first, second)[i], line) for i in order]
    svg = str(chart("Coverage over rounds", "round", "share", lines).svg)
    assert svg.rindex(f"stroke: {second.colour}") > svg.rindex(f"stroke: {first.colour}")


def test_windows_and_participants_come_in_the_order_of_the_table(tmp_path: Path) -> None:
    names = ["msfusion", "fedavg", "random", "heterofl"]
    page = one(tmp_path, *(write(tmp_path / m, a_header(m, 0, metric="loss"), 3) for m in names))
    ranked = [row[0] for row in page.rows[1 : 1 + len(names)]]
    assert ranked != names
    titles = re.findall(r"<summary><span.*?</svg>(.*?)</span>", page.source)
    assert titles[: 2 * len(names)] == 2 * ranked


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


def test_records_and_report_agree_on_what_a_run_is(tmp_path: Path) -> None:
    run = write(tmp_path / "run", a_header("msfusion", 0), 2)
    with (run / "records.jsonl").open("ab") as file:
        file.write(b'{"kind":"round","round":2')
    assert len(read(run).rounds) == 2
    assert one(tmp_path, run).row("msfusion")[-1] == "2"


def test_of_the_peers_of_a_run_the_one_that_tells_most_is_shown(tmp_path: Path) -> None:
    """Every peer writes down the same rounds; one of them has scored the full model."""
    header = a_header("msfusion", 0)
    own = {
        "participant": 0,
        "score": {"accuracy": 0.5, "loss": 1.0, "examples": 4},
        "sent": 1,
        "received": 1,
        "here": [0, 1],
    }
    for n, facts in enumerate([{"evaluation": None}, {}, {"evaluation": None}]):
        write(tmp_path / "peers" / str(n), header, 3 if n else 4, own={**own, "participant": n}, **facts)
    page = one(tmp_path, tmp_path / "peers")
    assert page.row("msfusion")[-1] == "3"
    assert page.row("msfusion")[1] != "no evaluation yet"
    assert "1 method, 1 run" in page.source


def test_where_and_how_long_runs_were_made_tells_no_groups_apart(tmp_path: Path) -> None:
    """A comparison of one run has other workers than one of several, and a run that goes on has its first
    header."""
    runs = []
    for seed, (workers, rounds) in enumerate([("auto", 2), (1, 4)]):
        header = a_header("msfusion", seed, config={"workers": workers, "rounds": rounds})
        runs.append(write(tmp_path / str(seed), header, 4))
    page = one(tmp_path, *runs)
    assert [row[0] for row in page.rows[1:2]] == ["msfusion"]
    assert "2 seeds" in page.source


def test_runs_of_other_data_are_no_seeds_of_one_method(tmp_path: Path) -> None:
    """From Python nothing else may tell them apart."""
    python = {"config": {"method": "msfusion"}}
    for seed, data in enumerate(("a", "a", "b")):
        write(tmp_path / str(seed), a_header("msfusion", seed, **python, data=data), 2)
    source = one(tmp_path, tmp_path).source
    assert ["cnn (data a)" in source, "cnn (data b)" in source] == [True, True]
    assert "3 seeds" not in source


def test_an_option_of_a_model_may_be_called_seed(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / str(n), a_header("msfusion", 0, config={"model": {"options": {"seed": n}}}), 2)
        for n in (1, 2)
    ]
    labels = {row[0] for row in one(tmp_path, *runs).rows[1:3]}
    assert labels == {"msfusion (model.options.seed 1)", "msfusion (model.options.seed 2)"}


def test_a_run_that_diverged_in_the_end_has_no_final_score(tmp_path: Path) -> None:
    good = write(tmp_path / "good", a_header("fedavg", 0, metric="loss"), 3)
    header = a_header("msfusion", 0, metric="loss")
    bad = write(tmp_path / "bad", header, 2)
    with closing(Writer.resume(bad, header, 2)) as writer:
        lost = {"accuracy": 0.1, "loss": float("nan"), "examples": 360}
        writer.round(a_round(header, 2, evaluation=lost))
    rows = one(tmp_path, good, bad).rows
    assert [row[0] for row in rows[1:3]] == ["fedavg", "msfusion"]
    assert "1 of 1 diverged" in rows[2][1]


def test_a_run_that_ended_early_has_no_final_score(tmp_path: Path) -> None:
    good = write(tmp_path / "good", a_header("fedavg", 0), 3)
    whole = write(tmp_path / "whole", a_header("msfusion", 0), 3)
    early = write(tmp_path / "early", a_header("msfusion", 1), 2)
    never = write(tmp_path / "never", a_header("random", 0), 1)
    rows = {row[0]: row[1] for row in one(tmp_path, good, whole, early, never).rows[1:4]}
    assert rows["random"] == "1 of 1 before round 3"
    assert rows["msfusion"].endswith("% (1 seed), 1 of 2 before round 3")
    assert "before" not in rows["fedavg"]


def test_a_seed_that_ended_in_its_first_round_is_counted(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", a_header("msfusion", 0), 3)
    none = write(tmp_path / "none", a_header("msfusion", 1), 0)
    row = one(tmp_path, whole, none).row("msfusion")
    assert row[1].endswith("% (1 seed), 1 of 2 before round 3")
    assert row[-1] == "0 to 3"


def test_coverage_at_the_end_is_that_of_the_seeds_with_a_score(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", a_header("msfusion", 0), 3, coverage=0.8)
    early = [write(tmp_path / f"early-{n}", a_header("msfusion", n), 1, coverage=0.2 * n) for n in (1, 2)]
    assert one(tmp_path, whole, *early).row("msfusion")[2] == "80.0%"
    headers = [a_header("msfusion", n, config={"rounds": 9}) for n in (0, 1)]
    going = [write(tmp_path / f"on-{n}", headers[n], 1, coverage=0.2 * (n + 1)) for n in (0, 1)]
    assert one(tmp_path, *going).row("msfusion")[2] == "30.0%"


def test_a_seed_that_ended_early_does_not_cut_the_line_of_the_others(tmp_path: Path) -> None:
    whole = [write(tmp_path / f"whole-{n}", a_header("msfusion", n), 6) for n in (0, 1)]
    early = write(tmp_path / "early", a_header("msfusion", 2), 1)
    lost = write(tmp_path / "lost", a_header("msfusion", 3), 5)
    with closing(Writer.resume(lost, a_header("msfusion", 3), 5)) as writer:
        nothing = {"accuracy": 0.1, "loss": float("nan"), "examples": 360}
        writer.round(a_round(a_header("msfusion", 3), 5, evaluation=nothing))
    other = write(tmp_path / "fedavg", a_header("fedavg", 0), 6)
    page = one(tmp_path, *whole, early, lost, other)
    assert any("not drawn: 2 of 4 of msfusion. FLOPs" in text for text in page.texts["p"])
    charts = re.findall(r"<svg xmlns:xlink.*?</svg>", page.source, re.DOTALL)
    write_report([*whole, other], tmp_path / "without.html")
    assert charts == re.findall(
        r"<svg xmlns:xlink.*?</svg>", (tmp_path / "without.html").read_text(), re.DOTALL
    )


def test_while_no_seed_has_ended_all_are_drawn(tmp_path: Path) -> None:
    header = [a_header("msfusion", n, config={"rounds": 9}) for n in (0, 1, 2)]
    runs = [write(tmp_path / str(n), header[n], rounds) for n, rounds in enumerate((3, 5, 0))]
    page = one(tmp_path, *runs)
    assert any("not drawn: 1 of 3 of msfusion." in text for text in page.texts["p"])
    assert [len(run.rounds) for run in drawn(Group("msfusion", tuple(map(read, runs))), 9)] == [3, 5]


def test_runs_of_other_lengths_have_their_own_final_scores(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / str(rounds), a_header("msfusion", 0, config={"rounds": rounds}), rounds)
        for rounds in (1, 3)
    ]
    assert not any("before" in row[1] for row in one(tmp_path, *runs).rows[1:3])


def test_runs_that_only_tried_a_value_are_reported_where_they_are_named(tmp_path: Path) -> None:
    write(tmp_path / "c" / "msfusion" / "seed-0", a_header("msfusion", 0), 2)
    tried = write(tmp_path / "c" / "tuning" / "msfusion" / "train.lr=0.1", a_header("msfusion", 1), 2)
    (tmp_path / "c" / "tuning.json").write_text("{}")
    assert "1 seed" in one(tmp_path, tmp_path / "c").rows[1][1]
    assert len(find([tmp_path / "c"])) == 1
    assert len(find([tmp_path / "c" / "tuning"])) == len(find([tried])) == 1


def test_a_run_whose_loss_is_lost_is_not_chosen(tmp_path: Path) -> None:
    """Its accuracy is a number all the same."""
    for name, loss in (("good", 1.5), ("lost", float("nan"))):
        header = a_header("msfusion", 0)
        with closing(Writer(tmp_path / name, header)) as writer:
            writer.round(a_round(header, 0, evaluation={"accuracy": 0.1, "loss": loss, "examples": 10}))
    assert score(tmp_path / "good", 1) == 0.1
    assert math.isnan(score(tmp_path / "lost", 1))


def test_a_comparison_states_the_most_that_any_seed_pays_and_the_coverage_of_those_that_ended(
    tmp_path: Path,
) -> None:
    whole = write(tmp_path / "whole", a_header("msfusion", 0), 3, coverage=0.8)
    larger = a_header("msfusion", 1)
    larger["participants"][3] |= {"flops_per_step": 9e9, "memory_bytes": 8_000_000}
    early = write(tmp_path / "early", larger, 1, coverage=0.2)
    row = row_of("msfusion", [whole, early], 3)
    assert (row["flops_per_step"], row["memory_bytes"]) == (9e9, 8_000_000)
    assert (row["coverage"], row["diverged"], row["runs"]) == (0.8, 1, 2)
    assert row_of("msfusion", [early], 3)["coverage"] == 0.2


def test_the_cost_of_fjord_is_said_to_be_that_of_all_that_a_participant_affords(tmp_path: Path) -> None:
    other, drawn = (write(tmp_path / name, a_header(name, 0), 1) for name in ("msfusion", "fjord"))
    assert "The cost of fjord" not in one(tmp_path, other).source
    assert one(tmp_path, other, drawn).source.count("that of all that a participant affords") == 1


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ([1.2344], "1.234 (1 seed)"),
        ([0.0349], "0.035 (1 seed)"),
        ([123456.789], "123456.789 (1 seed)"),
        ([1.0, 1.002], "1.001 ± 0.001 (sd over 2 seeds)"),
        ([0.0], "0.000 (1 seed)"),
        ([3.12345e-4], "0.0003123 (1 seed)"),
        ([1e-4, 2e-4], "0.00015 ± 7.071e-05 (sd over 2 seeds)"),
        ([-2e9], "-2e+09 (1 seed)"),
    ],
)
def test_a_loss_is_read_whatever_its_size(losses: list[float], text: str) -> None:
    assert spread(losses, "loss") == text
