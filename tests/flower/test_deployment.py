"""Real SuperLink and SuperNodes on loopback, with TLS and keys; killed and started again."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment, until, write_app
from points import CONFIG, alone, parameters, rounds, same, simulated, stored

pytestmark = pytest.mark.slow

ALL, OTHERS = frozenset({0, 1, 2}), frozenset({0, 2})


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


def test_a_killed_node_and_a_killed_link_come_back(deployment: Deployment, tmp_path: Path) -> None:
    out = tmp_path / "run"
    waiting = {"waiting.deadline": 30.0, "waiting.patience": 150.0}
    app = write_app(tmp_path / "trial", {**CONFIG, **waiting, "out": str(out)})
    for i in range(3):
        deployment.join(f"node-{i}", f"partition-id={i}")
    deployment.flwr("run", app)
    until(lambda: done(out) == 1, 120, "the first round")
    orders = "Receiving: train message"
    until(lambda: deployment.processes.log("node-1").count(orders) == 2, 60, "the second order")
    deployment.processes.end("node-1", signal.SIGKILL)
    until(lambda: done(out) == 2, 100, "the second round")
    deployment.processes.end("superlink", signal.SIGKILL)
    deployment.start()
    until(lambda: "another ServerApp" not in deployment.flwr("run", app), 60, "the run")

    def all_are_back() -> bool:
        node = deployment.processes.running.get("node-1")
        if node is None or node.poll() is not None:  # refused, as long as the link takes it to be there
            deployment.join("node-1", "partition-id=1")
        return done(out) == 3

    until(all_are_back, 200, "the third round")
    first, second, third = rounds(out)
    assert first["participants"] == third["participants"] == [0, 1, 2]
    assert second["participants"] == [0, 2]
    assert [one["participant"] for one in second["dropped"]] == [1]
    assert same(stored(out), alone(ALL, OTHERS, ALL))
