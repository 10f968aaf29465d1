"""Configuration: presets, files, flags over them, and what is refused by name."""

import dataclasses
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given
from hypothesis import strategies as st

from msfusion.config import Config, Model, load, load_axes, parse_setting, presets
from msfusion.data import Data
from msfusion.errors import UserError
from msfusion.learn.local import Train
from msfusion.learn.methods import get_method
from msfusion.models import MODELS
from msfusion.settings import filled, validated


def file(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text)
    return str(path)


# --- presets


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name: str) -> None:
    config = load(name)
    get_method(config.method)
    assert config.model.name in MODELS
    assert (config.width is None) != (config.share is None)


def test_the_demo_is_what_the_project_promises() -> None:
    config = load("demo")
    assert (config.participants, config.share) == (10, 0.3)
    assert (config.data.name, config.data.partition, config.data.alpha) == ("digits", "dirichlet", 0.3)


def test_named_presets_exist() -> None:
    assert {"demo", "cifar10", "shakespeare"} <= set(presets())


# --- files and flags


def test_a_file_says_what_differs_from_the_defaults(tmp_path: Path) -> None:
    text = 'width = 0.5\nrounds = 7\n[train]\nlr = 1\n[model]\nname = "mlp"\noptions = { hidden = [8, 4] }\n'
    config = load(file(tmp_path, text))
    assert config == Config(
        width=0.5, rounds=7, train=Train(lr=1.0), model=Model("mlp", {"hidden": [8, 4]}), data=Data()
    )
    assert isinstance(config.train.lr, float)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(file(tmp_path, "")) == Config()


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, 'rounds = 7\nwidth = 0.5\n[train]\nlr = 0.5\nbatch = 8\n[model]\nname = "mlp"\n')
    config = load(path, {"rounds": 9, "train.lr": 0.25, "model.options.hidden": [8]})
    assert (config.rounds, config.width, config.train.lr, config.train.batch) == (9, 0.5, 0.25, 8)
    assert config.model == Model("mlp", {"hidden": [8]})


@pytest.mark.parametrize(("given", "other"), [("width", "share"), ("share", "width")])
def test_a_width_replaces_the_share_of_the_file_and_the_other_way_round(
    given: str, other: str, tmp_path: Path
) -> None:
    config = load(file(tmp_path, f"{other} = 0.5"), {given: 0.25})
    assert getattr(config, given) == 0.25
    assert getattr(config, other) is None


@pytest.mark.parametrize("order", [("width", "share"), ("share", "width")])
def test_flags_that_give_both_are_kept_for_the_run_to_refuse(order: tuple[str, str]) -> None:
    """Neither silently wins."""
    config = load("demo", dict.fromkeys(order, 0.25))
    assert (config.width, config.share) == (0.25, 0.25)


def test_loading_leaves_the_flags_alone() -> None:
    flags = {"width": 0.5, "train.lr": 0.1}
    load("demo", flags)
    assert flags == {"width": 0.5, "train.lr": 0.1}


# --- what is refused


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("widht", "width"),
        ("round", "rounds"),
        ("train.learning_rate", "train.lr"),
        ("train.batchsize", "train.batch"),
        ("lr", "train.lr"),
        ("alpha", "data.alpha"),
        ("data.aplha", "data.alpha"),
        ("model.option", "model.options"),
        ("partition", "data.partition"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, near: str, tmp_path: Path) -> None:
    if key != "train.learning_rate":
        with pytest.raises(UserError, match=f"got '{key}'; did you mean '{near}'"):
            load("demo", {key: 1})
    table, _, leaf = key.rpartition(".")
    path = file(tmp_path, f"[{table}]\n{leaf} = 1" if table else f"{leaf} = 1")
    with pytest.raises(UserError, match=f"got '{key}'; did you mean"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("width", 0, r"setting width: expected a value in \(0, 1\], got 0"),
        ("width", 1.01, r"in \(0, 1\], got 1.01"),
        ("width", float("nan"), r"in \(0, 1\], got nan"),
        ("share", -0.5, r"setting share: .*\(0, 1\], got -0.5"),
        ("overlap", 1, r"in \[0, 1\), got 1"),
        ("participants", 0, "setting participants: expected a value of at least 1, got 0"),
        ("rounds", -3, "setting rounds: .* at least 1, got -3"),
        ("rounds", 2.5, "setting rounds: .*integer.*2.5"),
        ("rounds", "many", "setting rounds: .*integer.*'many'"),
        ("train.lr", 0, "setting train.lr: expected a value above 0, got 0"),
        ("train.clip", 0, "setting train.clip: expected a value above 0, got 0"),
        ("train.optimizer", "sdg", "setting train.optimizer: expected 'sgd', 'adam' or 'adamw', got 'sdg'"),
        ("server_step", "square", "setting server_step: expected 'constant'.*got 'square'"),
        ("data.name", "mnist", "setting data.name: .*'digits'.*got 'mnist'"),
        ("data.augment", "perhaps", "setting data.augment: .*'perhaps'"),
        ("model", "cnn", "setting model: .*got 'cnn'"),
        (
            "model.options.since",
            date(2020, 1, 1),
            "setting model.options.since: expected numbers, texts, true",
        ),
    ],
)
def test_a_value_out_of_its_range_names_itself_and_the_range(key: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load("demo", {key: value})
    assert "\n" not in str(caught.value)


def test_options_of_a_model_are_handed_on_as_they_are() -> None:
    given = {"dilate": [True, False], "names": ["1", "2"], "drop": [0.3, 1.0], "rope": {"kind": "linear"}}
    options = load("demo", {"model.options": given}).model.options
    assert repr(options) == repr(given)


def test_a_table_changes_what_it_names(tmp_path: Path) -> None:
    path = file(tmp_path, '[data]\nname = "text"\npath = "a"\n[model]\noptions = {width = 3}')
    config = load(path, {"data": {"limit": 50, "path": "b"}, "model": {"options": {"depth": 1}}})
    assert config.data == Data(name="text", path="b", limit=50)
    assert config.model.options == {"depth": 1}


def test_a_value_where_a_table_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected 'model' in 'model\.name' to be a table"):
        load(file(tmp_path, 'model = "cnn"'), {"model.name": "mlp"})


@pytest.mark.parametrize("name", ["nowhere", "nowhere.toml", "."])
def test_a_missing_file_is_refused_with_the_presets(name: str) -> None:
    with pytest.raises(UserError, match=r"expected a preset \(.*demo.*\) or a TOML file"):
        load(name)


@pytest.mark.parametrize("content", [b"rounds =", b"\xff\xfe\x00", b"rounds = 1\nrounds = 2"])
def test_a_broken_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="to be a TOML file") as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


# --- key=value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=0.1", ("train.lr", 0.1)),
        (" rounds = 3 ", ("rounds", 3)),
        ("data.augment=true", ("data.augment", True)),
        ("model.options.hidden=[8, 4]", ("model.options.hidden", [8, 4])),
        ("method=fedavg", ("method", "fedavg")),
        ('method="fedavg"', ("method", "fedavg")),
        ("method=msfusion:in-step", ("method", "msfusion:in-step")),
        ("data.path=/a/b=c.txt", ("data.path", "/a/b=c.txt")),
        ("data.path=", ("data.path", "")),
        ("train.lr=5e-4", ("train.lr", 5e-4)),
    ],
)
def test_settings_are_read_as_in_toml_and_bare_words_as_text(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["rounds", "=3", " = 3", ""])
def test_a_setting_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="key=value"):
        parse_setting(text)


@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(value: Any) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert parse_setting(f"a.b={text}") == ("a.b", value)


# --- ranges in words


@dataclasses.dataclass(frozen=True)
class Ranges:
    above: Annotated[float, Gt(0)] = 1
    least: Annotated[int, Ge(2)] | None = 2
    below: Annotated[float, Lt(3)] = 0
    most: Annotated[float, Le(4)] = 0
    both: Annotated[float, Ge(0), Lt(1)] = 0
    free: float = 0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("above", 0, "above 0"),
        ("least", 1, "of at least 2"),
        ("below", 3, "below 3"),
        ("most", 5, "of at most 4"),
        ("both", 1, r"in \[0, 1\)"),
        ("both", -1, r"in \[0, 1\)"),
    ],
)
def test_ranges_in_words(key: str, value: float, words: str) -> None:
    with pytest.raises(UserError, match=f"setting {key}: expected a value {words}, got {value}$"):
        validated(Ranges, {key: value})


def test_a_setting_without_a_range() -> None:
    with pytest.raises(UserError, match=r"setting free: expected a valid number.*, got 'x'"):
        validated(Ranges, {"free": "x"})


@pytest.mark.parametrize("text", ["", "[model]\nname = 'mlp'\n", "[model]\nname = 'mlp'\n[model.axes]\n"])
def test_a_file_of_axes_without_axes_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "axes.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"expected a table \[model.axes\] in \S*axes.toml, found none"):
        load_axes(path)


def test_a_file_of_axes_of_another_form_is_refused_by_the_name_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "axes.toml"
    path.write_text('"a.weight" = "3"\n')
    with pytest.raises(UserError, match=r"setting model\.axes\.a\.weight: expected a valid list, got '3'"):
        load_axes(path)


def test_twins_of_a_preset_are_not_for_a_model_from_elsewhere(tmp_path: Path) -> None:
    """It may begin with pretrained values, of which they would make copies."""
    assert load("shakespeare").twins == load("cifar10", {"model.name": "mlp"}).twins == 0.9
    assert load("cifar10", {"model.name": "hf:folder"}).twins is None
    assert load("cifar10", {"model.name": "own.py:net", "twins": 0.5}).twins == 0.5
    file = tmp_path / "own.toml"
    file.write_text("twins = 0.7\n")
    assert load(str(file), {"model.name": "hf:folder"}).twins == 0.7


def test_the_word_none_is_no_value_where_there_may_be_none(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('twins = 0.9\n[train]\nclip = 1.0\n[data]\nname = "digits"\n')
    found = load(str(file), {"twins": "none", "train.clip": "none", "data.limit": "none"})
    assert (found.twins, found.train.clip, found.data.limit) == (None, None, None)
    with pytest.raises(UserError, match=r"train\.lr"):
        load(str(file), {"train.lr": "none"})


def test_however_the_model_is_named() -> None:
    assert load("demo", {"model": {"name": "net.py:make"}}).twins is None
    assert load("demo", {"model.name": "net.py:make", "twins": 0.5}).twins == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"twins": False}, r"setting twins: expected a number in \[0, 1\], got false; none switches it off"),
        ({"rounds": True}, "setting rounds: expected a number of at least 1, got true"),
        ({"share": [0.5, True]}, r"setting share: expected a number in \(0, 1\], got true"),
        ({"memory": True}, "setting memory: expected a number, got true"),
        ({"data.image": True}, r"setting data.image: expected a number in \(0, 8192\], got true"),
    ],
)
def test_true_and_false_are_no_numbers(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        filled(Config, settings)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        ((0.5, 2), r"expected a value in \(0, 1\], got 2"),
        ((0.5, "half"), "expected a valid number, .*got 'half'"),
        ([], "expected at least one value, got an empty list"),
        ("0.5,0.25", r".*got '0.5,0.25'; a list is written as \[0.5,0.25\]"),
    ],
)
def test_of_a_list_the_value_that_is_wrong_is_named(share: object, words: str) -> None:
    with pytest.raises(UserError, match=f"setting share: {words}"):
        filled(Config, {"share": share})
