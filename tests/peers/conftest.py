"""The process from which all peers of a test module are forked."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from group import PRESET, Nursery, Replay


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    preset = Path(tmp_path_factory.mktemp("preset")) / "small.toml"
    preset.write_text(PRESET)
    nursery = Nursery(preset)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def replay(nursery: Nursery) -> Replay:
    return Replay(nursery)
