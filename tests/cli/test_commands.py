"""Every command, as a user calls it: what it prints, where, with which exit code."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, load_model
from torch.utils.data import TensorDataset

import msfusion
from msfusion import cli
from msfusion.commands import options as named
from msfusion.commands.peer_task import fingerprint
from msfusion.config import load, presets
from msfusion.data import load as load_data
from msfusion.learn.methods import METHODS
from msfusion.models import MODELS, build
from msfusion.records import read
from msfusion.report.numbers import percent
from msfusion.runtimes import checkpoint

Answer = tuple[int, str, str]
"""Exit code, standard output, standard error."""

SMALL = """
participants = 4
width = 0.5
rounds = 2
[model]
name = "mlp"
options = { hidden = [12, 8] }
[data]
name = "digits"
limit = 200
test_limit = 100
[train]
steps = 2
batch = 16
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Calls the command line in this process."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back behind the test
        monkeypatch.setattr(sys, "argv", ["msfusion", *map(str, arguments)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_warnings_are_sentences(run: Callable[..., Answer]) -> None:
    run("settings")
    assert warnings.formatwarning("mind this", UserWarning, "file.py", 3) == "warning: mind this\n"
    told = warnings.formatwarning("mind this", FutureWarning, "file.py", 3)
    assert told == "warning: FutureWarning: mind this\n"


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def one_object(answer: Answer) -> dict[str, Any]:
    """The JSON object that is all of standard output."""
    code, out, err = answer
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def refused(answer: Answer, *words: str) -> None:
    """Exit code 2, one line that says what is wrong, nothing on standard output."""
    code, out, err = answer
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in words:
        assert word in err


# --- simulate


def test_simulate_prints_one_line(run: Callable[..., Answer], preset: Path) -> None:
    code, out, err = run("simulate", preset)
    assert (code, err) == (0, "")
    assert out.startswith("msfusion after 2 rounds: accuracy ")
    assert "coverage 100.0%" in out


def test_simulate_json(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    value = one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    recorded = read(tmp_path / "run").rounds[-1]
    assert recorded["evaluation"] is not None
    assert value["accuracy"] == recorded["evaluation"]["accuracy"]
    assert value["coverage"] == recorded["coverage"]
    assert value["out"] == str(tmp_path / "run")


def test_every_flag_reaches_the_run(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    flags = "--method fedrolex --participants 3 --share 0.4 --rounds 1 --seed 5 --set train.lr=0.25"
    one_object(run("simulate", preset, *flags.split(), "--out", tmp_path / "r", "--json"))
    header = read(tmp_path / "r").header
    config = header["config"]
    assert (header["method"], header["seed"], len(header["participants"])) == ("fedrolex", 5, 3)
    assert (config["share"], config["width"], config["train"]["lr"]) == (0.4, None, 0.25)
    assert config["rounds"] == 1


def test_a_run_is_resumed(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    one_object(run("simulate", preset, "--out", tmp_path / "a", "--json"))
    resumed = one_object(
        run("simulate", preset, "--out", tmp_path / "a", "--resume", "--rounds", 4, "--json")
    )
    unbroken = one_object(run("simulate", preset, "--out", tmp_path / "b", "--rounds", 4, "--json"))
    assert resumed == {**unbroken, "out": resumed["out"]}
    first, second = (checkpoint.load(tmp_path / name)[0] for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tensorboard_events(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    one_object(run("simulate", preset, "--out", tmp_path / "run", "--tensorboard", "--json"))
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_a_loss_that_is_no_number_ends_the_run(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    """Weights that are finite but huge: the logits overflow."""
    flags = ("--rounds", 1, "--set", "train.lr=1e18", "--set", "train.steps=1", "--out", tmp_path / "run")
    refused(run("simulate", preset, *flags, "--json"), "round 0", "finite loss", "train.lr")
    assert checkpoint.load(tmp_path / "run")[1]["rounds_done"] == 1


# --- compare


def test_compare_writes_one_table_and_one_report(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    flags = ("--methods", "msfusion, fedavg", "--seeds", 2, "--out", tmp_path / "c", "--jobs", 1)
    value = one_object(run("compare", preset, *flags, "--json"))
    assert [row["method"] for row in value["methods"]] == ["msfusion", "fedavg"]
    for row in value["methods"]:
        runs = [read(tmp_path / "c" / row["method"] / f"seed-{seed}") for seed in (0, 1)]
        finals = [r.rounds[-1]["evaluation"] for r in runs]
        assert row["scores"] == [e["accuracy"] for e in finals if e]
        assert [r.header["seed"] for r in runs] == [0, 1]
    page = (tmp_path / "c" / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    again = run("compare", preset, *flags, "--resume")
    assert again[0] == 0
    assert "msfusion" in again[1]
    assert "± " in again[1]
    assert "report.html" in again[1]


def test_compare_tries_a_setting_and_takes_the_best_of_each_method(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    """On a seed that is not compared. One rate makes the loss infinite: that run is no error."""
    out = tmp_path / "c"
    tune = ("--tune", "train.lr=[1e-9, 0.05, 1e30]")
    flags = ("--methods", "msfusion,fedavg", "--seeds", 1, "--out", out, "--jobs", 1, *tune)
    value = one_object(run("compare", preset, *flags, "--json"))
    for row in value["methods"]:
        assert row["tuned"] == {"train.lr": 0.05}
        assert read(out / row["method"] / "seed-0").header["config"]["train"]["lr"] == 0.05
    found = json.loads((out / "tuning.json").read_text())
    assert (found["setting"], found["values"], found["seed"]) == ("train.lr", [1e-9, 0.05, 1e30], 1)
    assert found["chosen"] == {"msfusion": 0.05, "fedavg": 0.05}
    for method, (slow, right, diverged) in found["scores"].items():
        assert slow < right
        assert diverged is None
        folder = out / "tuning" / method / "train.lr=0.05"
        assert read(folder).header["seed"] == 1
        assert (read(folder).rounds[-1]["evaluation"] or {})["accuracy"] == right
    assert run("compare", preset, *flags, "--resume")[0] == 0
    assert "train.lr" in run("compare", preset, *flags, "--resume")[1]


TUNED = ("--tune", "train.lr=[0.01, 0.05]", "--seeds", 1, "--jobs", 1, "--rounds", 1)


def test_a_comparison_keeps_the_tuning_of_methods_that_it_leaves_out(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    flags = (*TUNED, "--out", tmp_path / "c", "--json")
    one_object(run("compare", preset, "--methods", "msfusion,fedavg", *flags))
    before = json.loads((tmp_path / "c" / "tuning.json").read_text())
    more = one_object(run("compare", preset, "--methods", "fedrolex,fedavg", *flags, "--resume"))
    assert [row["method"] for row in more["methods"]] == ["fedrolex", "fedavg", "msfusion"]
    assert more["methods"][2]["tuned"] == {"train.lr": before["chosen"]["msfusion"]}
    after = json.loads((tmp_path / "c" / "tuning.json").read_text())
    for key in ("scores", "chosen"):
        assert list(after[key]) == ["msfusion", "fedavg", "fedrolex"]
        assert after[key] == {**after[key], **before[key]}
    other = ("--resume", "--tune", "train.lr=[0.01, 0.1]")
    with pytest.warns(UserWarning, match="left out of the table: it was not tuned"):
        one_object(run("compare", preset, "--methods", "fedavg", *flags, *other))
    assert list(json.loads((tmp_path / "c" / "tuning.json").read_text())["scores"]) == ["fedavg"]


def test_a_comparison_leaves_out_what_it_cannot_read(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    (tmp_path / "fedrolex" / "seed-0").mkdir(parents=True)
    (tmp_path / "fedrolex" / "seed-0" / "records.jsonl").touch()
    flags = ("--methods", "fedavg", "--jobs", 1, "--rounds", 1, "--out", tmp_path, "--resume", "--json")
    with pytest.warns(UserWarning, match=r"seed-0 is left out of the table: .* no complete line"):
        rows = one_object(run("compare", preset, *flags))["methods"]
    assert [row["method"] for row in rows] == ["fedavg"]


def test_a_comparison_that_may_not_run_leaves_the_tuning_as_it_is(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    flags = (*TUNED, "--methods", "fedavg", "--out", tmp_path / "c", "--json")
    wrong = ("--set", "model.name=nothing", "--out", tmp_path / "d")
    one_object(run("compare", preset, *flags))
    before = (tmp_path / "c" / "tuning.json").read_bytes()
    refused(run("compare", preset, *flags), "without a run")
    refused(run("compare", preset, *flags, "--resume", "--set", "train.steps=3"), "settings of the run")
    refused(run("compare", preset, *flags, *wrong))
    assert (tmp_path / "c" / "tuning.json").read_bytes() == before
    assert not (tmp_path / "d").exists()


def test_a_comparison_that_is_stopped_keeps_the_tuning_that_it_found(
    run: Callable[..., Answer], preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*TUNED, "--out", tmp_path / "c", "--json")
    one_object(run("compare", preset, "--methods", "fedavg", *flags))
    before = (tmp_path / "c" / "tuning.json").read_bytes()

    def stop(record: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("msfusion.commands.compare.note", stop)
    assert run("compare", preset, "--methods", "fedavg,msfusion", *flags, "--resume")[0] == 130
    assert (tmp_path / "c" / "tuning.json").read_bytes() == before
    assert run("compare", preset, "--methods", "msfusion", *TUNED, "--out", tmp_path / "new")[0] == 130
    assert json.loads((tmp_path / "new" / "tuning.json").read_text())["scores"] == {}


def test_a_tuned_comparison_keeps_the_seed_of_its_tuning(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    """With fewer seeds it goes on; with more, it would be tuned with one that it compares."""
    flags = (*TUNED, "--methods", "fedavg", "--out", tmp_path / "c", "--json")
    one_object(run("compare", preset, *flags, "--seeds", 2))
    before = (tmp_path / "c" / "tuning.json").read_bytes()
    assert json.loads(before)["seed"] == 2
    one_object(run("compare", preset, *flags, "--seeds", 1, "--resume"))
    more = run("compare", preset, *flags, "--seeds", 3, "--resume")
    refused(more, "got 0 to 2", "was tuned with seed 2", "give another --out, or --seeds 2")
    assert (tmp_path / "c" / "tuning.json").read_bytes() == before


def test_compare_without_a_directory_prints_the_table(run: Callable[..., Answer], preset: Path) -> None:
    code, out, err = run("compare", preset, "--methods", "fedavg", "--jobs", 1, "--rounds", 1)
    assert (code, err) == (0, "")
    assert "fedavg" in out
    assert "fjord" not in out
    out = run("compare", preset, "--methods", "fjord:inner-first", "--jobs", 1, "--rounds", 1)[1]
    assert "that of all that a participant affords" in out


@pytest.mark.slow
def test_runs_in_processes_of_their_own_end_with_the_same_bits(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    for jobs in (1, 2):
        flags = ("--methods", "msfusion,fedavg", "--out", tmp_path / str(jobs), "--jobs", jobs, "--json")
        one_object(run("compare", preset, *flags))
    for method in ("msfusion", "fedavg"):
        a, b = (checkpoint.load(tmp_path / jobs / method / "seed-0")[0] for jobs in ("1", "2"))
        assert all(torch.equal(a[name], b[name]) for name in a)


# --- plan


def test_plan_by_width(run: Callable[..., Answer]) -> None:
    value = one_object(run("plan", "mlp", "--participants", 4, "--width", 0.25, "--rounds", 8, "--json"))
    assert value["plans"][0]["widths"] == {"hidden.0.out": [16, 64], "hidden.1.out": [16, 64]}
    full, own = value["full"], value["plans"][0]["cost"]
    assert full["parameters"] == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert own["parameters"] == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert own["bytes_per_round"] == 2 * 4 * own["parameters"]
    assert len(value["coverage"]) == 8
    first = value["rounds_to_full_coverage"]
    assert [c["share"] == 1 for c in value["coverage"]] == [i + 1 >= first for i in range(8)]


def test_plan_by_share(run: Callable[..., Answer]) -> None:
    value = one_object(run("plan", "cnn", "--participants", 4, "--share", 0.3, "--json"))
    assert 0.25 < value["plans"][0]["cost"]["parameters"] / value["full"]["parameters"] <= 0.3


def test_plan_by_memory(run: Callable[..., Answer]) -> None:
    flags = ("--participants", 4, "--option", "hidden=[64]", "--json")
    value = one_object(run("plan", "mlp", "--memory", "40kB", *flags))
    assert 36_000 < value["plans"][0]["cost"]["memory_bytes"] <= 40_000
    more = one_object(run("plan", "mlp", "--memory", 45_000, *flags))
    assert more["plans"][0]["cost"]["memory_bytes"] > value["plans"][0]["cost"]["memory_bytes"]


def test_plan_by_operations(run: Callable[..., Answer]) -> None:
    value = one_object(run("plan", "mlp", "--flops", "300_000", "--json"))
    assert 250_000 < value["plans"][0]["cost"]["flops_per_step"] <= 300_000


def test_plan_counts_twins_and_the_contrastive_loss(run: Callable[..., Answer]) -> None:
    """Twins give widths that divide the axes; the loss costs operations in every sub-model."""
    flags = ("plan", "mlp", "--participants", 2, "--rounds", 1, "--json")
    plain = one_object(run(*flags, "--share", 0.3))["plans"][0]
    twins = one_object(run(*flags, "--share", 0.3, "--set", "twins=0.9"))["plans"][0]
    assert all(size % width == 0 for width, size in twins["widths"].values())
    assert not all(size % width == 0 for width, size in plain["widths"].values())
    bare = one_object(run(*flags, "--width", 0.5))["plans"][0]["cost"]
    more = one_object(run(*flags, "--width", 0.5, "--set", "contrast.weight=1"))["plans"][0]["cost"]
    assert more["flops_per_step"] > bare["flops_per_step"]
    assert more["memory_bytes"] > bare["memory_bytes"]


def test_plan_of_participants_that_differ(run: Callable[..., Answer]) -> None:
    value = one_object(run("plan", "mlp", "--participants", 5, "--width", "0.5,0.25", "--json"))
    wide, slim = value["plans"]
    assert (wide["participants"], slim["participants"]) == ([0, 2, 4], [1, 3])
    assert (wide["widths"]["hidden.0.out"], slim["widths"]["hidden.0.out"]) == ([32, 64], [16, 64])
    out = run("plan", "mlp", "--participants", 5, "--width", "0.5,0.25")[1]
    assert "participants 0, 2, 4" in out


@pytest.mark.slow
def test_plan_finds_how_narrow_many_participants_may_be(run: Callable[..., Answer]) -> None:
    """Two cut axes meet: k windows of each axis make k^2 pairs, one for each of N participants. In the
    residual streams of a transformer none meet, so k windows suffice, but a head is not cut."""
    value = one_object(run("plan", "mlp", "--scaling", "--json"))
    assert [row["participants"] for row in value["scaling"]] == [4, 8, 16, 32, 64, 128, 256]
    found = [round(1 / row["width"]) for row in value["scaling"]]
    assert found[0] == 2
    assert found[2] == 4
    assert all(k * k <= row["participants"] for k, row in zip(found, value["scaling"], strict=True))
    parameters = [row["cost"]["parameters"] for row in value["scaling"]]
    assert parameters == sorted(parameters, reverse=True)
    assert parameters[-1] < 0.1 * value["full"]["parameters"]
    gpt = ("gpt", "--option", "layers=1", "--option", "embed=32", "--option", "heads=4")
    value = one_object(run("plan", *gpt, "--scaling", "--json"))
    assert [round(1 / row["width"]) for row in value["scaling"]][:3] == [4, 8, 16]


def test_plan_as_a_table(run: Callable[..., Answer]) -> None:
    code, out, err = run("plan", "mlp", "--participants", 4, "--width", 0.25)
    assert (code, err) == (0, "")
    for words in ("parameters", "FLOP per step", "bytes per round", "every parameter trained after"):
        assert words in out


@pytest.mark.parametrize("method", ["msfusion", "msfusion:independent", "random"])
def test_a_run_covers_the_model_when_the_plan_says(
    method: str, run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    options = ("--option", "hidden=[12, 8]")
    flags = ("--method", method, "--participants", 4, "--width", 0.25, "--rounds", 20)
    planned = one_object(run("plan", "mlp", *options, *flags, "--json"))
    first = planned["rounds_to_full_coverage"]
    assert first > 1
    one_object(
        run("simulate", preset, *flags, "--set", "evaluate_every=99", "--out", tmp_path / "r", "--json")
    )
    rounds = read(tmp_path / "r").rounds
    assert [r["coverage"] for r in rounds] == [c["share"] for c in planned["coverage"]]
    assert next(r["round"] + 1 for r in rounds if r["coverage"] == 1) == first
    costs = read(tmp_path / "r").header["participants"][0]
    assert costs["parameters"] == planned["plans"][0]["cost"]["parameters"]
    assert costs["bytes_per_round"] == planned["plans"][0]["cost"]["bytes_per_round"]


# --- axes, report, export


def test_axes(run: Callable[..., Answer]) -> None:
    value = one_object(run("axes", "mlp", "--option", "hidden=[12, 8]", "--json"))
    assert value["axes"] == {"hidden.0.out": [12, False, None], "hidden.1.out": [8, False, None]}
    assert value["tensors"]["hidden.1.weight"] == ["hidden.1.out:8", "hidden.0.out:12"]
    code, out, err = run("axes", "mlp", "--option", "hidden=[12, 8]")
    assert (code, err) == (0, "")
    assert "hidden.1.weight" in out


def test_axes_of_a_users_model(run: Callable[..., Answer], tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "def net(units=6):\n"
        "    layers = torch.nn.Linear(3, units), torch.nn.ReLU(), torch.nn.Linear(units, 2)\n"
        "    return torch.nn.Sequential(*layers), torch.zeros(2, 3)\n"
    )
    value = one_object(run("axes", f"{path}:net", "--option", "units=9", "--json"))
    assert [size for size, _, _ in value["axes"].values()] == [9]


def test_report(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    value = one_object(run("report", tmp_path / "run", "--out", tmp_path / "r.html", "--json"))
    assert value == {"report": str(tmp_path / "r.html")}
    assert "msfusion" in (tmp_path / "r.html").read_text()


def test_export_gives_the_model_that_was_scored(
    run: Callable[..., Answer], tmp_path: Path, preset: Path
) -> None:
    """With batch norm, in a run whose evaluations do not fall on its end: the file alone gives the score."""
    preset.write_text(SMALL.replace('"mlp"', '"cnn"').replace("hidden = [12, 8]", "width = 4, depth = 2"))
    scored = one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    value = one_object(run("export", tmp_path / "run", tmp_path / "new" / "model.safetensors", "--json"))
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    assert value == {
        "out": str(tmp_path / "new" / "model.safetensors"),
        "tensors": len(tensors),
        "values": sum(t.numel() for t in tensors.values()),
    }
    from msfusion.config import load
    from msfusion.learn.evaluation import evaluate
    from msfusion.learn.objective import Objective

    config = load(str(preset))
    data = load_data(config.data, config.participants, config.seed)
    model, _ = build("cnn", data.inputs, config.model.options)
    assert load_model(model, tmp_path / "new" / "model.safetensors") == (set(), [])
    assert evaluate(model, data.test, Objective()).accuracy == scored["accuracy"]


def test_tied_weights_are_exported_once_and_load(run: Callable[..., Answer], tmp_path: Path) -> None:
    source = tmp_path / "tied.py"
    source.write_text(
        "import torch\n"
        "class Tied(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first = torch.nn.Linear(64, 12)\n"
        "        self.second = torch.nn.Linear(64, 12)\n"
        "        self.second.weight = self.first.weight\n"
        "        self.head = torch.nn.Linear(12, 10)\n"
        "    def forward(self, x):\n"
        "        x = x.flatten(1)\n"
        "        return self.head(torch.relu(self.first(x) + self.second(x)))\n"
    )
    preset = tmp_path / "tied.toml"
    preset.write_text(SMALL.replace('"mlp"', f'"{source}:Tied"').replace("hidden = [12, 8]", ""))
    one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    one_object(run("export", tmp_path / "run", tmp_path / "tied.safetensors", "--json"))
    names = set(load_file(tmp_path / "tied.safetensors"))
    assert names == {"first.weight", "first.bias", "second.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("method", ["msfusion", "fedavg-small", "standalone"])
def test_evaluate_gives_the_score_of_the_run(
    method: str, run: Callable[..., Answer], tmp_path: Path, preset: Path
) -> None:
    preset.write_text(SMALL.replace('"mlp"', '"cnn"').replace("hidden = [12, 8]", "width = 8, depth = 2"))
    made = one_object(run("simulate", preset, "--method", method, "--out", tmp_path / "run", "--json"))
    before = contents(tmp_path)
    value = one_object(run("evaluate", tmp_path / "run", "--json"))
    scores = {"accuracy": made["accuracy"], "loss": made["loss"]}
    assert value == {"method": method, "rounds": 2, **scores, "examples": 100}
    code, out, err = run("evaluate", tmp_path / "run", "--device", "cpu")
    assert (code, err) == (0, "")
    assert out == (
        f"{method} after 2 rounds: accuracy {percent(made['accuracy'])}, loss {made['loss']:.4f} "
        "on 100 test examples\n"
    )
    assert contents(tmp_path) == before


def test_evaluate_with_data_that_have_moved(run: Callable[..., Answer], tmp_path: Path, preset: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60)
    preset.write_text(
        f"participants = 2\nwidth = 0.5\nrounds = 1\n"
        f"[model]\nname = 'gpt'\noptions = {{ layers = 1, heads = 2, embed = 8 }}\n"
        f"[data]\nname = 'text'\npath = '{text}'\nblock = 8\n[train]\nsteps = 1\n"
    )
    made = one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    text.rename(tmp_path / "moved.txt")
    refused(run("evaluate", tmp_path / "run"), "text.txt")
    moved = one_object(run("evaluate", tmp_path / "run", "--data", tmp_path / "moved.txt", "--json"))
    assert moved["loss"] == made["loss"]
    (tmp_path / "other.txt").write_text("to be or not to be, that is the question. " * 50)
    refused(run("evaluate", tmp_path / "run", "--data", tmp_path / "other.txt"), "examples")


def test_no_data_are_not_those_of_the_working_directory(
    run: Callable[..., Answer], tmp_path: Path, preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("to be, or not to be. " * 200)
    monkeypatch.chdir(tmp_path)
    preset.write_text(
        "participants = 2\nwidth = 0.5\nrounds = 1\n"
        "[model]\nname = 'gpt'\noptions = { layers = 1, heads = 2, embed = 8 }\n"
        "[data]\nname = 'text'\nblock = 8\n[train]\nsteps = 1\n"
    )
    for empty in (("--data", ""), ("--set", 'data.path=""')):
        refused(run("simulate", preset, *empty), "a file or folder of data", "got an empty text")
    assert run("simulate", preset, "--data", "text.txt", "--out", "run")[0] == 0
    refused(run("evaluate", "run", "--data", ""), "got an empty text")
    assert run("simulate", preset, "--data", "./text.txt", "--out", "run", "--resume")[0] == 0


def test_a_run_from_python_is_not_evaluated(run: Callable[..., Answer], tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    msfusion.simulate(model, [data], data, msfusion.Run(width=0.5, rounds=1), out=tmp_path / "run")
    refused(run("evaluate", tmp_path / "run"), "from Python", "resume=True")


def test_help_and_no_command(run: Callable[..., Answer]) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in (
        "simulate",
        "compare",
        "plan",
        "axes",
        "settings",
        "report",
        "evaluate",
        "export",
        "flower",
    ):
        assert command in out
        assert run(command, "--help")[0] == 0


def test_help_names_what_there_is(run: Callable[..., Answer]) -> None:
    listed = {text: text.replace(" :", " msfusion:").split(", ") for text in (named.METHODS, named.VARIANTS)}
    assert listed[named.METHODS] == list(METHODS)
    assert [*listed[named.VARIANTS], f"msfusion:{named.GENERAL}"] == [
        f"msfusion:{name}" for name in METHODS["msfusion"].variants
    ]
    others = {name: list(method.variants) for name, method in METHODS.items() if name != "msfusion"}
    assert others.pop("standalone") == []
    assert all(named.GENERAL in variants for variants in others.values())
    inner_first = [name for name, variants in others.items() if "inner-first" in variants]
    assert inner_first == named.INNER_FIRST.split(", ")
    assert {variant for variants in others.values() for variant in variants} == {named.GENERAL, "inner-first"}
    assert named.PRESETS.split(", ") == presets()
    assert named.MODELS.split(", ") == sorted(MODELS)
    for command in ("simulate", "compare"):
        said = "".join(run(command, "--help")[1].split())  # where lines break is typer's choice
        for wanted in (named.PRESETS, named.METHODS, "may be repeated"):
            assert "".join(wanted.split()) in said


def test_version(run: Callable[..., Answer]) -> None:
    assert run("--version") == (0, f"msfusion {version('msfusion')}\n", "")


def test_one_round_is_no_rounds(run: Callable[..., Answer], preset: Path) -> None:
    assert run("simulate", preset, "--rounds", 1)[1].startswith("msfusion after 1 round: ")


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("simulate", "demo", "--width", 0), ("width", "(0, 1]", "got 0")),
        (("simulate", "demo", "--width", 1.5), ("width", "(0, 1]", "got 1.5")),
        (("simulate", "demo", "--width", "nan"), ("width", "(0, 1]")),
        (("simulate", "demo", "--share", 2), ("share", "(0, 1]", "got 2")),
        (("simulate", "demo", "--share", 0.00001), ("share of 1e-05", "give participants more")),
        (("simulate", "demo", "--width", 0.001), ("0.001", "32 units", "at least 0.0158")),
        (("simulate", "demo", "--width", 0.5, "--share", 0.5), ("width 0.5 and share 0.5",)),
        (("simulate", "demo", "--participants", 0), ("participants", "at least 1", "got 0")),
        (("simulate", "demo", "--participants", 5000), ("5000 participants", "1438 examples")),
        (("simulate", "demo", "--rounds", 0), ("rounds", "at least 1")),
        (("simulate", "demo", "--method", "fedrolx"), ("did you mean 'fedrolex'",)),
        (("simulate", "demo", "--set", "train.lrr=1"), ("did you mean 'train.lr'",)),
        (("simulate", "demo", "--set", "lr"), ("key=value", "'lr'")),
        (("simulate", "demo", "--set", "device=tpu"), ("device", "'tpu'")),
        (("simulate", "demo", "--set", "data.min_examples=0", "--set", "data.alpha=0.01"), ("participant",)),
        (("simulate", "demo", "--resume"), ("--out",)),
        (("simulate", "demo", "--tensorboard"), ("--out",)),
        (("simulate", "nowhere"), ("demo", "'nowhere'")),
        (("simulate", "cifar10", "--data", "nowhere"), ("'nowhere'",)),
        (("simulate", "shakespeare", "--data", "nowhere"), ("nowhere",)),
        (("compare", "demo", "--methods", "fedavg,"), ("method",)),
        (("compare", "demo", "--methods", "fedavg,fedavg"), ("once",)),
        (("compare", "demo", "--resume"), ("--out",)),
        (("simulate", "demo", "--share", 0.3, "--set", "share=0.5"), ("share once", "0.3", "0.5 by --set")),
        (("simulate", "demo", "--data", "a", "--set", 'data={path="b"}'), ("data.path once", "'b' by --set")),
        (("plan", "mlp", "--width", 0.5, "--batch", 8, "--set", "train.batch=9"), ("train.batch once", "8")),
        (("compare", "demo", "--set", "seed=3"), ("--seeds", "seed=3")),
        (("compare", "demo", "--set", "method=fedavg"), ("--methods", "method=fedavg")),
        (("compare", "demo", "--seeds", 0), ("--seeds", "at least 1", "got 0")),
        (("compare", "demo", "--tune", "train.lr=0.1"), ("train.lr=[0.02, 0.05]", "'train.lr=0.1'")),
        (
            ("compare", "demo", "--tune", "train.lr=[0.1, 1]", "--set", "train.lr=1"),
            ("--tune", "train.lr=1"),
        ),
        (
            ("compare", "demo", "--tune", "train.lr=[1e30, 1e31]", "--methods", "fedavg", "--jobs", 1),
            ("train.lr = [1e+30, 1e+31]", "diverged"),
        ),
        (("plan", "mlp", "--participants", 0, "--width", 0.5), ("participants", "at least 1", "got 0")),
        (("plan", "mlp", "--participants", 2, "--width", 0.5, "--rounds", 0), ("rounds", "at least 1")),
        (
            ("plan", "mlp", "--participants", 2, "--width", 0.5, "--batch", 0),
            ("batch", "in (0, 1000000]", "got 0"),
        ),
        (("plan", "mlp", "--participants", 2, "--width", -1), ("width", "(0, 1]", "got -1")),
        (("plan", "mlp", "--participants", 2), ("width, share, memory, flops", "none")),
        (("plan", "mlp", "--participants", 2, "--width", 1, "--memory", "1MB"), ("width 1", "memory 1MB")),
        (("plan", "mlp", "--scaling", "--width", 1), ("--width", "--scaling")),
        (("plan", "mlp", "--scaling", "--method", "fedavg"), ("--scaling", "whole")),
        (("plan", "mlp", "--scaling", "--participants", 4), ("--participants", "--scaling")),
        (("plan", "mlp", "--scaling", "--set", "twins=1"), ("only train.*", "'twins'")),
        (
            ("plan", "mlp", "--width", 0.5, "--set", "overlap=0.5"),
            ("twins, contrast.* or train.*", "overlap"),
        ),
        (("plan", "mlp", "--width", 0.5, "--set", "train.rate=1"), ("train.rate",)),
        (("plan", "mlp", "--width", "0.5,2"), ("width", "(0, 1]", "got 2")),
        (("plan", "mlp", "--participants", 2, "--memory", "1.2.3"), ("'1.2.3'",)),
        (("plan", "mlp", "--participants", 2, "--memory", "-5"), ("500MB", "-5")),
        (("plan", "mlp", "--participants", 2, "--memory", "10B"), ("10 bytes", "give participants more")),
        (("plan", "mpl", "--participants", 2, "--width", 1), ("'mpl'", "mlp")),
        (("axes", "nowhere.py:net"), ("'nowhere.py'",)),
        (("axes", "mlp", "--option", "hiden=3"), ("hiden", "hidden")),
        (("axes", "mlp", "--option", "hidden"), ("key=value",)),
        (("report", "nowhere"), ("nowhere",)),
        (("evaluate", "nowhere"), ("checkpoint", "nowhere")),
        (("export", "nowhere", "x.safetensors"), ("checkpoint", "nowhere")),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: tuple[object, ...],
    words: tuple[str, ...],
    run: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_directory_that_holds_a_run(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    before = contents(tmp_path)
    refused(run("simulate", preset, "--out", tmp_path / "run"), "without a run", "resume")
    refused(run("simulate", preset, "--out", tmp_path / "run", "--seed", 1), "without a run")
    refused(run("simulate", preset, "--out", tmp_path / "run", "--resume", "--seed", 1), "seed")
    refused(
        run("simulate", preset, "--out", tmp_path / "run", "--resume", "--rounds", 1),
        "rounds of at least 2",
        "got 1",
    )
    other = ("--set", "model.options.hidden=[12, 9]")
    refused(run("simulate", preset, "--out", tmp_path / "run", "--resume", *other), "of this model")
    changes = ("--set", "model.options.dropout=0.1", "--set", "train.batch=8")
    refused(
        run("simulate", preset, "--out", tmp_path / "run", "--resume", *changes),
        "got model.options.dropout = 0.1 where the run has none, train.batch = 8 where the run has 16",
    )
    assert contents(tmp_path) == before


def test_a_folder_of_runs_is_no_run(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    flags = ("--methods", "msfusion:in-step,fedavg", "--rounds", 1, "--jobs", 1)
    one_object(run("compare", preset, *flags, "--out", folder, "--json"))
    runs = f"{folder / 'fedavg' / 'seed-0'}, {folder / 'msfusion-in-step' / 'seed-0'}"
    refused(run("export", folder, tmp_path / "x.safetensors"), f"name one of the runs in it: {runs}")


def test_broken_checkpoints(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    path = tmp_path / "run" / checkpoint.FILE_NAME
    path.write_bytes(path.read_bytes()[:-7])
    before = contents(tmp_path)
    refused(run("simulate", preset, "--out", tmp_path / "run", "--resume"), str(path), "cannot be read")
    refused(run("export", tmp_path / "run", tmp_path / "x.safetensors"), str(path), "cannot be read")
    assert contents(tmp_path) == before
    path.unlink()
    refused(run("simulate", preset, "--out", tmp_path / "run", "--resume"), "found no checkpoint")


def test_divergence(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    lr = ("--set", "train.lr=1e9", "--rounds", 50)
    refused(run("simulate", preset, "--out", tmp_path / "run", *lr), "round", "NaN", "train.lr")
    tensors, facts = checkpoint.load(tmp_path / "run")
    assert facts["rounds_done"] == len(read(tmp_path / "run").rounds)
    assert all(t.isfinite().all() for t in tensors.values())
    refused(run("simulate", preset, "--out", tmp_path / "run", "--resume", *lr), "NaN")
    one_object(run("export", tmp_path / "run", tmp_path / "x.safetensors", "--json"))


def test_a_comparison_says_which_run_failed(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    flags = ("--methods", "fedavg", "--seeds", 2, "--jobs", 1, "--set", "train.lr=1e18")
    said = run("compare", preset, *flags, "--out", tmp_path / "c")
    refused(said, "fedavg with seed ", "round 0", "train.lr")


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_comparison_goes_on_where_a_run_diverges(
    jobs: int, run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    flags = ("--methods", "msfusion,msfusion:no-contrast", "--rounds", 4, "--set", "contrast.weight=1e30")
    code, out, err = run("compare", preset, *flags, "--out", tmp_path / "c", "--json", "--jobs", jobs)
    assert code == 0
    assert "warning: msfusion with seed 0: " in err
    lost, kept = json.loads(out)["methods"]
    assert (lost["scores"], lost["diverged"]) == ([], 1)
    assert (len(kept["scores"]), kept["diverged"]) == (1, 0)
    assert len(read(tmp_path / "c" / "msfusion" / "seed-0").rounds) < 4
    code, out, _ = run("compare", preset, *flags, "--out", tmp_path / "c", "--resume", "--jobs", 1)
    assert code == 0
    assert "│ 1 of 1 diverged │" in out
    assert "1 of 1 before round 4" in (tmp_path / "c" / "report.html").read_text()


def test_a_run_that_diverges_when_resumed_has_no_score(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    flags = ("--methods", "msfusion,msfusion:no-contrast", "--set", "contrast.weight=1e30", "--jobs", 1)
    assert run("compare", preset, *flags, "--rounds", 1, "--out", tmp_path / "c")[0] == 0
    code, out, _ = run(
        "compare", preset, *flags, "--rounds", 4, "--out", tmp_path / "c", "--resume", "--json"
    )
    assert code == 0
    assert [(one["scores"] == [], one["diverged"]) for one in json.loads(out)["methods"]] == [
        (True, 1),
        (False, 0),
    ]


def test_a_page_that_is_none_is_seen_before_the_training(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("mine")
    refused(run("compare", preset, "--methods", "fedavg", "--out", tmp_path), "an HTML page", "report.html")
    assert {path.name for path in contents(tmp_path)} == {"report.html", preset.name}


@pytest.mark.parametrize("file", ["checkpoint.safetensors", "records.jsonl"])
def test_what_a_run_left_is_not_replaced(
    file: str, run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    own = tmp_path / "run"
    run("simulate", preset, "--out", own)
    before = contents(own)
    if file == "records.jsonl":
        refused(run("report", own, "--out", own / file), "is absent or an HTML page", file)
    else:
        refused(run("export", own, own / file), "is absent or a model", file)
    assert contents(own) == before
    for _ in range(2):  # what was written before is
        one_object(run("export", own, tmp_path / "x.safetensors", "--json"))
        assert run("report", own, "--out", tmp_path / "x.html")[0] == 0


def test_a_model_is_a_safetensors_file(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    run("simulate", preset, "--out", tmp_path / "run")
    refused(run("export", tmp_path / "run", tmp_path / "x.pt"), "x.safetensors for mlp", "x.pt")


def test_help_is_plain(run: Callable[..., Answer]) -> None:
    _, out, _ = run("compare", "--help")
    assert "[required]" in out
    assert "\\" not in out


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("adapt.target=inf", "setting adapt.target: expected a finite number, got inf"),
        ("train.momentum=inf", "setting train.momentum"),
        ("logit_adjustment=inf", "setting logit_adjustment"),
        (f"threads={10**23}", "setting threads"),
        (f"train.batch={10**23}", "setting train.batch"),
        (f"data.image={10**23}", "setting data.image"),
    ],
)
def test_numbers_without_end(setting: str, says: str, run: Callable[..., Answer], preset: Path) -> None:
    refused(run("simulate", preset, "--set", setting), says)


def test_a_label_outside_the_classes(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    """A user's model with 8 outputs on ten digits."""
    source = tmp_path / "mine.py"
    source.write_text(
        "import torch\n"
        "def net():\n"
        "    n = torch.nn\n"
        "    return n.Sequential(n.Flatten(), n.Linear(64, 12), n.ReLU(), n.Linear(12, 8))\n"
    )
    preset.write_text(SMALL.replace('"mlp"', f'"{source}:net"').replace("hidden = [12, 8]", ""))
    refused(run("simulate", preset), "labels from 0 to 7", "got ")


def test_methods_that_train_no_full_model_export_none(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    for method in ("standalone", "fedavg-small"):
        one_object(run("simulate", preset, "--method", method, "--out", tmp_path / method, "--json"))
        refused(run("export", tmp_path / method, tmp_path / "x.safetensors"), method)
    assert not (tmp_path / "x.safetensors").exists()


def test_files_that_cannot_be_written(run: Callable[..., Answer], preset: Path, tmp_path: Path) -> None:
    one_object(run("simulate", preset, "--out", tmp_path / "run", "--json"))
    refused(run("simulate", preset, "--out", preset), "small.toml")
    refused(run("simulate", preset, "--out", preset / "run"), "small.toml")
    refused(run("export", tmp_path / "run", tmp_path), str(tmp_path))
    refused(run("export", tmp_path / "run", preset / "x.safetensors"), "small.toml")
    refused(run("report", tmp_path / "run", "--out", preset / "x.html"), "small.toml")
    assert preset.read_text() == SMALL


def test_a_bug_keeps_its_traceback(run: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    from msfusion.commands import axes

    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(axes, "run", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("axes", "mlp")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("seed=[1, 2]", "a setting that every method can be tried with to tune, got 'seed'"),
        ("rounds=[1, 2]", "a setting that every method can be tried with to tune, got 'rounds'"),
        ("train.lr=[0.05, 5e-2]", "values that differ from each other to try"),
    ],
)
def test_what_cannot_be_tuned(run: Callable[..., Answer], preset: Path, grid: str, message: str) -> None:
    code, _, err = run("compare", preset, "--methods", "fedavg", "--tune", grid)
    assert code == 2
    assert message in err


def test_addresses_may_have_a_space_after_the_comma(
    run: Callable[..., Answer], preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = []
    monkeypatch.setattr("msfusion.commands.peer.run", lambda *_, link, **more: links.append(link))
    addresses = "127.0.0.1:1, localhost:2 ,"
    code, _, err = run("peer", preset, "--participant", 0, "--connect", addresses, "--listen", addresses)
    assert (code, err) == (0, "")
    assert links[0].connect == links[0].listen == ["127.0.0.1:1", "localhost:2"]


@pytest.mark.parametrize("flag", [("--participant", "anna"), ("--export", "folder"), ("--router",)])
def test_a_local_try_refuses_what_it_does_not_use(
    run: Callable[..., Answer], preset: Path, flag: tuple[str, ...]
) -> None:
    code, _, err = run("peer", preset, "--local", 2, *flag)
    assert code == 2
    assert f"expected --local without {flag[0]}" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--router", "--participant", "1", "--listen", "127.0.0.1:1"), "--router without --participant"),
        (("--router", "--evaluate", "--listen", "127.0.0.1:1"), "--router without --evaluate"),
        (("--router", "--export", "x", "--listen", "127.0.0.1:1"), "--router without --export"),
        (("--router",), "--listen HOST:PORT, at which peers reach the --router, got none"),
        (("--participant", "0", "--outbound", "--connect", "127.0.0.1:1", "--listen", "127.0.0.1:2"),
         "--outbound without --listen"),
    ],
)  # fmt: skip
def test_a_router_and_who_only_connects_refuse_what_they_do_not_use(
    run: Callable[..., Answer],
    preset: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    message: str,
) -> None:
    for name in ("route", "run"):
        monkeypatch.setattr(f"msfusion.commands.peer.{name}", lambda *_, **more: None)
    refused(run("peer", preset, *flags), message)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("train.lr=-1", "train.lr"), ('peers.names=["a"]', "peers.names"), ("rounds=0", "rounds")],
)
def test_a_local_try_says_once_what_is_wrong(
    run: Callable[..., Answer], preset: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.delattr("msfusion.commands.peer.subprocess.Popen")
    refused(run("peer", preset, "--local", 2, "--set", setting), message)


class Stood:
    """Processes that stand in for peers: participant 0 ends as it is told to, the others sleep."""

    SECONDS = 60

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pids = folder / "pids"
        self._script = folder / "peer"
        monkeypatch.setattr("msfusion.commands.peer.sys.executable", str(self._script))

    def first(self, command: str) -> None:
        self._script.write_text(
            f'#!/bin/sh\necho $$ >> {self._pids}\ncase "$*" in *"--participant 0"*) {command};; esac\n'
            f"exec sleep {self.SECONDS}\n"
        )
        self._script.chmod(0o755)

    def alive(self) -> list[str]:
        return [pid for pid in self._pids.read_text().split() if Path(f"/proc/{pid}").exists()]

    def all_there(self) -> bool:
        return self._pids.exists() and len(self._pids.read_text().split()) == 3


@pytest.fixture
def stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stood:
    return Stood(tmp_path, monkeypatch)


@pytest.mark.processes
@pytest.mark.parametrize(("ends", "code"), [("exit 3", 3), ("kill -9 $$", 9)])
def test_a_local_try_ends_with_the_first_peer_that_fails(
    run: Callable[..., Answer], preset: Path, stood: Stood, ends: str, code: int
) -> None:
    stood.first(f"sleep 0.5; {ends}")
    began = time.monotonic()
    assert run("peer", preset, "--local", 3)[0] == code
    assert time.monotonic() - began < stood.SECONDS
    assert not stood.alive()


@pytest.mark.processes
def test_a_local_try_that_is_stopped_leaves_no_peer_behind(
    run: Callable[..., Answer], preset: Path, stood: Stood
) -> None:
    def stop() -> None:
        limit = time.monotonic() + 30
        while not stood.all_there() and time.monotonic() < limit:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM went past the command"))
    stood.first(f"exec sleep {stood.SECONDS}")
    threading.Thread(target=stop).start()
    try:
        assert run("peer", preset, "--local", 3)[0] == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not stood.alive()


CONSTANT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head, self.shift = nn.Linear(64, 16), nn.Linear(16, 10), torch.randn(64)

    def forward(self, x):
        return self.head(torch.relu(self.first(x.flatten(1) + self.shift)))

def net():
    return Net()
"""


def test_models_with_constants_of_their_own_are_captured_for_every_seed(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(CONSTANT)
    model = ("--set", f"model.name={tmp_path}/net.py:net", "--set", "model.options={}", "--rounds", 1)
    run(
        "compare", preset, *model, "--methods", "msfusion", "--seeds", 2, "--jobs", 1, "--out", tmp_path / "c"
    )
    run("simulate", preset, *model, "--set", "seed=1", "--set", "workers=1", "--out", tmp_path / "s")
    first, second = (
        read(path).rounds[-1] for path in (tmp_path / "c" / "msfusion" / "seed-1", tmp_path / "s")
    )
    assert first["train_loss"] == second["train_loss"]
    assert first["evaluation"] == second["evaluation"]


def test_models_are_captured_for_every_shape_of_the_data(
    run: Callable[..., Answer], preset: Path, tmp_path: Path
) -> None:
    """One coloured image makes all coloured, and the seed says which are drawn."""
    for n in range(40):
        path = tmp_path / "images" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if n else "RGB", (8, 8), n).save(path)
    data = f'[data]\nname = "folder"\npath = "{tmp_path / "images"}"\nlimit = 8\n'
    start, _, train = SMALL.partition("[data]")
    preset.write_text(start + data + train[train.index("[train]") :].replace("16", "2"))
    config = load(str(preset), {})
    channels = [load_data(config.data, 4, seed).inputs.shape[0] for seed in range(4)]
    assert set(channels) == {1, 3}
    flags = ("--methods", "msfusion", "--seeds", 4, "--jobs", 1, "--out", tmp_path / "c", "--json")
    one_object(run("compare", preset, *flags))
    for seed, depth in enumerate(channels):
        model = read(tmp_path / "c" / "msfusion" / f"seed-{seed}").header["model"]
        assert model["parameters"] == 12 * (depth * 64 + 1) + 8 * (12 + 1) + 2 * (8 + 1)


def test_peers_agree_on_what_labels_mean() -> None:
    config = load("demo", {})
    assert fingerprint(config, "axes", "cat\ndog") != fingerprint(config, "axes", "dog\nfox")
