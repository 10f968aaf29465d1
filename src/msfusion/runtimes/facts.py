"""What a run was made with: versions, commit, hardware."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import NotRequired, TypedDict

import torch


class RunFacts(TypedDict):
    """The part of a run's header that does not depend on its settings."""

    versions: dict[str, str]
    commit: str | None
    hardware: str
    data: NotRequired[str]


def run_facts(workers: str | None = None, data: str | None = None) -> RunFacts:
    """Versions of what computes, the commit of the source if it is a checkout, and the machine.

    workers: which processes train, in words.
    data: digest of the examples, where there is one.
    """
    threads = torch.get_num_threads()
    hardware = f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}"
    if workers is not None:
        hardware += f", {workers}"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
    versions = {
        "msfusion": version("msfusion"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    facts: RunFacts = {"versions": versions, "commit": _commit(), "hardware": hardware}
    return facts if data is None else {**facts, "data": data}


def _commit() -> str | None:
    """That of the repository that has this file, which need not be one around an installed package."""
    here = Path(__file__)
    ours = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    return None if ours is None else _git(here.parent, "rev-parse", "HEAD")


def _git(folder: Path, *command: str) -> str | None:
    """What git says there; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
