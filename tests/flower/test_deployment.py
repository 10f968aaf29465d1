"""Real SuperLink and SuperNodes on loopback, with TLS and keys; killed and started again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment, until, write_app
from points import CONFIG, parameters, rounds, same, simulated, stored

pytestmark = pytest.mark.slow


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    started = Deployment(tmp_path / "deployment")
    try:
        yield started
    finally:
        started.processes.end_all()


def done(out: Path) -> int:
    """Rounds that a run has recorded."""
    return len(rounds(out)) if (out / "records.jsonl").exists() else 0


def test_three_rounds_end_with_the_parameters_of_the_simulation(
    deployment: Deployment, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = {**CONFIG, "contrast.weight": 1.0, "waiting.patience": 100.0, "out": str(out)}
    app = write_app(tmp_path / "trial", config)
    widths = (0.5, 0.25, 0.75)
    for i, width in enumerate(widths):
        deployment.join(f"node-{i}", f"partition-id={i} width={width}")
    deployment.join("stranger", "partition-id=1", register=False)
    deployment.flwr("run", app)
    until(lambda: done(out) == 3, 150, "three rounds")
    expected = simulated(**{"contrast.weight": 1.0, "width": widths})
    assert same(stored(out), parameters(expected))
    assert not any(r["dropped"] for r in rounds(out))
    until(lambda: deployment.processes.running["stranger"].poll() is not None, 30, "the stranger's end")
