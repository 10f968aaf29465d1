"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

from msfusion.config import presets
from msfusion.learn.methods import METHODS
from msfusion.models import MODELS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_trains_a_model_of_ones_own(tmp_path, monkeypatch, capsys):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    accuracy, coverage = map(float, capsys.readouterr().out.split())
    assert accuracy > 0.8
    assert coverage == 1
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "runs/mine/records.jsonl").exists()


def test_the_example_is_short():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(example.splitlines()) <= 10


@pytest.mark.parametrize("name", [*METHODS, *presets(), *MODELS])
def test_every_method_preset_and_model_is_named(name):
    assert f"`{name}`" in README


def test_every_link_into_the_repository_leads_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert "docs/settings.md" in targets
    assert all((Path(__file__).parents[1] / target).exists() for target in targets)
