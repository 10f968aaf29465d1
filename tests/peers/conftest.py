"""The process from which all peers are forked, one for each of pytest's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from group import PRESET, Nursery, Replay


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    preset = Path(tmp_path_factory.mktemp("preset")) / "small.toml"
    preset.write_text(PRESET)
    nursery = Nursery(preset)
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def replay(nursery: Nursery) -> Replay:
    return Replay(nursery)
