"""A peer's folder is of one run and one participant."""

from pathlib import Path

import pytest
from group import PRESET

from msfusion.commands import peer as command
from msfusion.commands.peer_task import agreed, fingerprint
from msfusion.config import load
from msfusion.errors import UserError
from msfusion.peers.mark import Mark, claim
from msfusion.peers.settings import Link
from msfusion.runtimes.sole import sole

MARK = Mark("hash", "anna", {"rounds": 4, "train": {"lr": 0.1}})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_marked_once_and_goes_on(tmp_path: Path) -> None:
    claim(tmp_path, MARK)
    before = files(tmp_path)
    claim(tmp_path, MARK)
    assert files(tmp_path) == before != {}


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (Mark("other", "anna", {"rounds": 6, "train": {"lr": 0.1}}), "got rounds = 6 where the run has 4;"),
        (Mark("other", "anna", MARK.settings), "got another model or other data;"),
        (Mark("hash", "ben", MARK.settings), "expected participant anna, .* got ben;"),
    ],
    ids=["settings", "model", "participant"],
)
def test_another_run_or_participant_is_refused(tmp_path: Path, mark: Mark, said: str) -> None:
    claim(tmp_path, MARK)
    before = files(tmp_path)
    with pytest.raises(UserError, match=f"{said}.* give another --out"):
        claim(tmp_path, mark)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["committed.json", "versions", "initial", "blocks", "records.jsonl"])
def test_a_folder_that_holds_a_run_without_a_mark_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"new or of this run, got .* with {name}"):
        claim(tmp_path, MARK)


def test_a_mark_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json to be written by this version"):
        claim(tmp_path, MARK)


def test_what_peers_may_have_of_their_own_is_no_matter_of_the_folder(tmp_path: Path) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text(PRESET)
    own = {"threads": 2, "evaluate_every": 3, "checkpoint_every": 3, "data.path": str(tmp_path)}
    assert agreed(load(str(preset), own)) == agreed(load(str(preset)))
    assert agreed(load(str(preset), {"rounds": 9})) != agreed(load(str(preset)))


def test_another_version_of_msfusion_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text(PRESET)
    config = load(str(preset))
    before = fingerprint(config, "axes", "meaning")
    monkeypatch.setattr("msfusion.commands.peer_task.version", lambda name: "99.0")
    assert fingerprint(config, "axes", "meaning") != before


def test_the_command_refuses_a_folder_of_other_settings(tmp_path: Path) -> None:
    preset, out = tmp_path / "small.toml", tmp_path / "run"
    preset.write_text(PRESET)
    out.mkdir()
    claim(out, Mark("other", "0", agreed(load(str(preset), {"seed": 7}))))
    with pytest.raises(UserError, match="got seed = 0 where the run has 7"):
        taken_part(preset, out)
    assert not (out / "initial").exists()


def test_the_command_refuses_a_folder_that_another_process_has(tmp_path: Path) -> None:
    preset, out = tmp_path / "small.toml", tmp_path / "run"
    preset.write_text(PRESET)
    with sole(out, "peer", "stop it"), pytest.raises(UserError, match="another peer is: stop that one"):
        taken_part(preset, out)


def taken_part(preset: Path, out: Path) -> None:
    command.run(
        str(preset),
        {},
        participant="0",
        link=Link(),
        own_data=False,
        out=out,
        evaluate=False,
        export=None,
    )
