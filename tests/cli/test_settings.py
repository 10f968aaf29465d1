"""docs/settings.md says what the code says, and its example runs."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt

from msfusion import cli
from msfusion.commands import settings
from msfusion.config import Config, load
from msfusion.models import MODELS
from msfusion.records import read

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()

Called = Callable[..., str]

Size = Annotated[int, Gt(0)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Calls the command line in this process; returns what it prints."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["msfusion", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert (end.value.code or 0, err) == (0, "")
        return out

    return call


def test_the_page_has_the_tables_of_the_code(run: Called) -> None:
    begin = PAGE.index("## Settings\n")
    assert PAGE[begin:] == run("settings"), "make docs"


def test_every_setting_and_option_is_there(run: Called) -> None:
    said = json.loads(run("settings", "--json"))
    named = {entry["name"]: entry for entry in said["settings"]}
    assert named["train.lr"] == {
        "name": "train.lr",
        "type": "number above 0",
        "default": "`0.05`",
        "unit": "",
        "meaning": "learning rate of the first round",
    }
    for field in dataclasses.fields(Config):
        assert field.name in named or any(name.startswith(f"{field.name}.") for name in named)
    assert all(entry["meaning"] for entry in said["settings"])
    assert settings._UNITS.keys() <= named.keys()
    assert said["models"].keys() == MODELS.keys()
    options = {entry["name"] for own in said["models"].values() for entry in own}
    assert options == settings._OPTIONS.keys()


def test_rows_have_the_columns_of_their_table(run: Called) -> None:
    tables = [re.findall(r"^\|.*\|$", part, re.MULTILINE) for part in run("settings").split("\n#")]
    assert sum(map(len, tables)) > 80
    assert all(len({row.count("|") for row in table}) <= 1 for table in tables)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "integer"),
        (Annotated[float, Gt(0), Le(1)] | None, "number in (0, 1], or none"),
        (Annotated[float, Ge(0), Lt(1)], "number in [0, 1)"),
        (Size | tuple[Size, ...] | None, "integer above 0, or a list of such, or none"),
        (Literal["a", "b"] | None, "`a` or `b`, or none"),
        (int | str, "integer or text"),
        (dict[str, int], "table"),
        (tuple[int, ...], "list: integer"),
    ],
)
def test_types_in_words(hint: object, words: str) -> None:
    assert settings.kind(hint) == words


@dataclasses.dataclass
class Documented:
    """One.

    third: in the docstring.
    """

    first: int = 0  # behind it
    # above it,
    # in two lines
    second: int = 0
    third: int = 0
    fourth: int = 0


def test_meanings_are_the_comments() -> None:
    assert settings.meanings_of(Documented) == {
        "first": "behind it",
        "second": "above it, in two lines",
        "third": "in the docstring.",
    }


def test_the_example_runs(run: Called, tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example
    (tmp_path / "mine.toml").write_text(example[1])
    run("simulate", tmp_path / "mine.toml", "--out", tmp_path / "run", "--json")
    config = load(str(tmp_path / "mine.toml"))
    recorded = read(tmp_path / "run")
    assert len(recorded.rounds) == config.rounds
    shares = [p["share"] for p in recorded.header["participants"]]
    assert len(shares) == config.participants
    assert all(0.25 < share <= 0.5 for share in shares[::2])
    assert all(0.1 < share <= 0.25 for share in shares[1::2])
