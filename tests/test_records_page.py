"""docs/records.md names what there is, and its snippet runs."""

import re
from pathlib import Path
from typing import get_type_hints

import pytest

from msfusion import records
from test_report import a_header, write

PAGE = (Path(__file__).parents[1] / "docs" / "records.md").read_text()


@pytest.mark.parametrize("kind", [records.Header, records.ParticipantFacts, records.Round, records.Own])
def test_every_field_is_named(kind: type) -> None:
    assert [name for name in get_type_hints(kind) if f"`{name}`" not in PAGE] == []


def test_the_snippet_reads_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "runs" / "mine", a_header("msfusion", 0), 3)
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    monkeypatch.chdir(tmp_path)
    exec(compile(found[1], "records.md", "exec"), {})
    said = capsys.readouterr().out
    assert "flops_per_step" in said
    assert "evaluation.accuracy" in said


def test_every_link_leads_somewhere() -> None:
    folder = Path(__file__).parents[1] / "docs"
    assert all((folder / target).exists() for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE))
