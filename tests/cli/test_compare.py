"""What a comparison says of runs that are there already, and of settings that it does not obey."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from msfusion.commands.compare import Comparison, _earlier, _table, row_of
from msfusion.records import Header, Writer


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    preset = tmp_path / "small.toml"
    preset.write_text("width = 0.5\nrounds = 2\n")
    return Comparison(str(preset), {}, ["fedavg"], 1)


def write(out: Path, comparison: Comparison, method: str, rounds: int = 2, **settings: Any) -> Path:
    """A run of a comparison, as records state it, of two participants of which one pays a tenth."""
    each = {"examples": 9, "parameters": 5, "flops_per_step": 10, "memory_bytes": 20, "bytes_per_round": 30}
    header: dict[str, Any] = {
        "kind": "header", "format": 1, "method": method, "seed": 0, "metric": "accuracy",
        "config": dataclasses.asdict(comparison.config(method, 0, settings)),
        "versions": {}, "commit": None, "hardware": "", "model": {"name": "cnn", "parameters": 9, "axes": {}},
        "participants": [{"participant": n, "share": share, **each} for n, share in enumerate((1.0, 0.1))],
        "pictured": [],
    }  # fmt: skip
    folder = out / method.replace(":", "-") / "seed-0"
    with closing(Writer(folder, Header(**header))) as writer:
        for number in range(rounds):
            writer.round({
                "kind": "round", "round": number, "participants": [0, 1], "dropped": [], "train_loss": 1.0,
                "flops": 1, "bytes": 1, "coverage": 1.0, "overlap": 0.0, "shift": None, "windows": {},
                "seconds": 0.1, "evaluation": {"accuracy": 0.5, "loss": 1.0, "examples": 9},
            })  # fmt: skip
    return folder


def test_finished_methods_that_the_folder_holds_stay_in_the_table(
    tmp_path: Path, comparison: Comparison
) -> None:
    out = tmp_path / "c"
    write(out, comparison, "fedavg")
    kept = [write(out, comparison, method) for method in ("fedrolex", "msfusion:in-step")]
    found = [(method, folders) for method, folders, _ in _earlier(comparison, out)]
    assert found == [("fedrolex", kept[:1]), ("msfusion:in-step", kept[1:])]


@pytest.mark.parametrize(
    ("rounds", "settings", "words"),
    [
        (1, {}, "fedrolex in .* is left out of the table: seed 0 has 1 round, not 2"),
        (2, {"train.lr": 0.5}, "left out of the table: this call has train.lr = 0.05 where the run has 0.5"),
    ],
)
def test_runs_that_cannot_stand_beside_the_others_are_named(
    rounds: int, settings: dict[str, Any], words: str, tmp_path: Path, comparison: Comparison
) -> None:
    write(tmp_path / "c", comparison, "fedrolex", rounds, **settings)
    with pytest.warns(UserWarning, match=words):
        assert list(_earlier(comparison, tmp_path / "c")) == []


def test_where_participants_differ_the_table_has_mean_and_maximum(
    tmp_path: Path, comparison: Comparison
) -> None:
    row = row_of("fedavg", [write(tmp_path, comparison, "fedavg")], 2)
    assert (row["share"], row["share_mean"], row["memory_bytes_mean"]) == (1.0, 0.55, 20)
    table: Any = _table([{**row, "tuned": {}}])
    shown = [next(iter(column.cells)).plain for column in table.columns[1:3]]
    assert shown == ["55.0%, max 100.0%", "10 FLOP"]


def test_a_seed_of_the_file_is_told_to_have_no_effect(tmp_path: Path) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text("width = 0.5\nseed = 3\n")
    with pytest.warns(UserWarning, match=r"seed = 3 of .*small.toml has no effect"):
        Comparison(str(preset), {}, ["fedavg"], 1)
