"""What a run was made with: versions, commit, hardware."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import torch


class RunFacts(TypedDict):
    """The part of a run's header that does not depend on its settings."""

    versions: dict[str, str]
    commit: str | None
    hardware: str


def run_facts(workers: str | None = None) -> RunFacts:
    """Versions of what computes, the commit of the source if it is a checkout, and the machine.

    workers: which processes train, in words.
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
    return {"versions": versions, "commit": _commit(), "hardware": hardware}


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
