"""What a run was made with."""

import subprocess
from pathlib import Path

import pytest

from msfusion.runtimes import facts


@pytest.mark.parametrize("tracked", [False, True])
def test_the_commit_is_that_of_the_repository_that_has_this_file(
    tracked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it is one around an environment into which the package is installed."""
    module = tmp_path / "venv" / "facts.py"
    module.parent.mkdir()
    module.touch()
    (tmp_path / "own.py").touch()

    def git(*command: str) -> None:
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *own, *command], check=True, capture_output=True)

    git("init")
    git("add", "." if tracked else "own.py")
    git("commit", "-m", "Begin")
    monkeypatch.setattr(facts, "__file__", str(module))
    commit = facts.run_facts()["commit"]
    assert (commit is not None) == tracked
