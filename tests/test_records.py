import json
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from msfusion.errors import UserError
from msfusion.records import FILE_NAME, Header, Round, Writer, read


def a_header(**changes: Any) -> Header:
    header: dict[str, Any] = {
        "kind": "header", "format": 1, "method": "msfusion", "seed": 0, "config": {"rounds": 3},
        "versions": {"msfusion": "0.1.0"}, "commit": None, "hardware": "2 cores", "metric": "accuracy",
        "model": {"name": "mlp", "parameters": 100, "axes": {"fc.out": 8}},
        "participants": [], "pictured": ["fc.out"],
    }  # fmt: skip
    return header | changes  # type: ignore[return-value]


def a_round(number: int, **changes: Any) -> Round:
    record: dict[str, Any] = {
        "kind": "round", "round": number, "participants": [0], "dropped": [], "train_loss": 1.5,
        "flops": 10, "bytes": 20, "coverage": 0.5, "overlap": 0.0, "shift": None,
        "windows": {"fc.out": {"0": [[6, 8], [0, 2]]}}, "seconds": 0.1, "evaluation": None,
    }  # fmt: skip
    return record | changes  # type: ignore[return-value]


def write(directory: Path, rounds: int = 3) -> Path:
    with closing(Writer(directory, a_header())) as writer:
        for number in range(rounds):
            writer.round(a_round(number))
    return directory / FILE_NAME


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "run")
    run = read(path)
    assert run == read(path.parent) == read(str(path.parent))
    assert run.header == a_header()
    assert list(run.rounds) == [a_round(n) for n in range(3)]


def test_each_line_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    with closing(Writer(tmp_path, a_header())) as writer:
        assert read(tmp_path).rounds == ()
        writer.round(a_round(0))
        assert len(read(tmp_path).rounds) == 1
    writer.close()


def test_a_directory_with_a_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    before = write(tmp_path).read_bytes()
    with pytest.raises(UserError, match="resume this run"):
        Writer(tmp_path, a_header())
    assert (tmp_path / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    with closing(Writer(tmp_path, a_header())) as writer:
        writer.round(a_round(0, train_loss=value, evaluation={"accuracy": 0.5, "loss": value, "examples": 2}))
    record = read(tmp_path).rounds[0]
    assert record["train_loss"] is None
    assert record["evaluation"] == {"accuracy": 0.5, "loss": None, "examples": 2}
    assert b"NaN" not in (tmp_path / FILE_NAME).read_bytes()


@pytest.mark.parametrize("torn", [b'{"kind":"rou', json.dumps(a_round(3)).encode(), b"\x00\x00"])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: bytes) -> None:
    path = write(tmp_path)
    with path.open("ab") as file:
        file.write(torn)
    assert [r["round"] for r in read(path).rounds] == [0, 1, 2]
    with closing(Writer.resume(tmp_path, a_header(), rounds_done=3)) as writer:
        writer.round(a_round(3))
    assert [r["round"] for r in read(path).rounds] == [0, 1, 2, 3]


@pytest.mark.parametrize("rounds_done", [0, 1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, rounds_done: int) -> None:
    path = write(tmp_path)
    before = path.read_bytes()
    changed = a_header(config={"rounds": 9})
    with closing(Writer.resume(tmp_path, changed, rounds_done)) as writer:
        assert len(read(path).rounds) == rounds_done
        for number in range(rounds_done, 3):
            writer.round(a_round(number))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "rounds_done", "message"),
    [
        ({"seed": 1}, 2, "its seed 0, got 1"),
        ({"method": "fedavg"}, 2, "its method msfusion, got fedavg"),
        ({"model": {"name": "cnn", "parameters": 1, "axes": {}}}, 2, "its model"),
        ({}, 4, "to record round 3"),
    ],
)
def test_what_cannot_be_resumed(
    tmp_path: Path, changes: dict[str, Any], rounds_done: int, message: str
) -> None:
    before = write(tmp_path).read_bytes()
    with pytest.raises(UserError, match=message):
        Writer.resume(tmp_path, a_header(**changes), rounds_done)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def line(**changes: Any) -> bytes:
    return json.dumps(a_header(**changes)).encode() + b"\n"


LINE = line()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "no complete line"),
        (b'{"kind":"head', "no complete line"),
        (b"a,b,c\n1,2,3\n", "line 1 is not JSON"),
        (b"\xff\xfe\n", "line 1 is not JSON"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b'{"kind":"round"}\n', "line 1 is not a header"),
        (b'{"kind":"header","format":2}\n', "got format 2"),
        (b'{"kind":"header","format":1}\n', "line 1 lacks commit, config"),
        (LINE + b"nonsense\n" + LINE, "line 2 is not JSON"),
        (LINE + b'{"kind":"round","round":0}\n', "line 2 lacks bytes"),
        (line(participants=[{"participant": 0}]), r"line 1 lacks participants\.0\.bytes_per_round, part"),
        (line(model={"name": "mlp", "parameters": 1, "axes": 3}), r"line 1 has 3 for model\.axes"),
        (LINE + json.dumps(a_round(0) | {"coverage": "x"}).encode() + b"\n", "line 2 has 'x' for coverage"),
        (
            LINE + json.dumps(a_round(0) | {"windows": {"a": {"0": [[1]]}}}).encode() + b"\n",
            r"line 2 has \[1\] for windows\.a\.0\.0",
        ),
        (LINE + 2 * (json.dumps(a_round(0)).encode() + b"\n"), "line 3 is not a round after round 0"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / FILE_NAME
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_run_without_a_round_may_be_begun_again(tmp_path: Path) -> None:
    """It was stopped before it had anything to go on from."""
    for seed in (0, 1):
        Writer(tmp_path, a_header(seed=seed)).close()
    assert read(tmp_path).header["seed"] == 1


def test_a_run_that_goes_on_with_other_versions_says_so(tmp_path: Path) -> None:
    """In the first round behind each change, and by a warning; the header stays that of the first start."""
    write(tmp_path, 1)
    newer = a_header(versions={"msfusion": "0.2.0", "torch": "3"})
    with pytest.warns(UserWarning, match=r"msfusion 0.2.0 after 0.1.0, torch 3 after none"):
        writer = Writer.resume(tmp_path, newer, 1)
    with closing(writer):
        writer.round(a_round(1))
        writer.round(a_round(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with closing(Writer.resume(tmp_path, newer, 3)) as writer:
            writer.round(a_round(3))
    run = read(tmp_path)
    assert [record.get("versions") for record in run.rounds] == [None, newer["versions"], None, None]
    assert run.header == a_header()
