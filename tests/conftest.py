"""What every test shares: one thread, no deadline for an example, and the folder of datasets that are not
bundled."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a model run in one process, as what they are about is made once per process: captures and
    narrow modules."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if name := getattr(parameters.get("row"), "name", None):
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations train in the test's own process, unless it asks for workers: the cores have other tests."""
    monkeypatch.setattr("msfusion.runtimes.cores._MOST", 1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder named by MSFUSION_DATA, else ``../shared/data`` beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MSFUSION_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no datasets in {folder}; name their folder in MSFUSION_DATA")
    return folder
