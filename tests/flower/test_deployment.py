"""Real SuperLink and SuperNodes on loopback, with TLS and keys; killed and started again."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment, until, write_app
from points import CONFIG, alone, parameters, rounds, same, simulated, stored

from msfusion.learn.disk_store import last_commit

pytestmark = [pytest.mark.slow, pytest.mark.deployed]

ALL, OTHERS = frozenset({0, 1, 2}), frozenset({0, 2})


WIDTHS = (0.5, 0.25, 0.75)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three SuperNodes, each with a width of its own."""
    started = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        for i in range(3):
            join(started, i)
        yield started
    finally:
        started.processes.end_all()


def join(deployment: Deployment, number: int) -> None:
    deployment.join(f"node-{number}", f"partition-id={number} width={WIDTHS[number]}")


def done(out: Path) -> int:
    """Rounds that a run has merged; they are in the records a little earlier."""
    folder = last_commit(out / "model")
    return int(folder.name) if folder else 0


def test_three_rounds_end_with_the_parameters_of_the_simulation(
    deployment: Deployment, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = {**CONFIG, "contrast.weight": 1.0, "waiting.patience": 300.0, "out": str(out)}
    app = write_app(tmp_path / "trial", config)
    deployment.join("stranger", "partition-id=1", register=False)
    deployment.flwr("run", app)
    until(lambda: done(out) == 3, 300, "three rounds")
    expected = simulated(**{"contrast.weight": 1.0, "width": WIDTHS})
    assert same(stored(out), parameters(expected))
    assert not any(r["dropped"] for r in rounds(out))
    until(lambda: deployment.processes.running["stranger"].poll() is not None, 30, "the stranger's end")


def test_a_killed_node_and_a_killed_link_come_back(deployment: Deployment, tmp_path: Path) -> None:
    out = tmp_path / "run"
    waiting = {"waiting.deadline": 300.0, "waiting.patience": 300.0}
    app = write_app(tmp_path / "trial", {**CONFIG, **waiting, "out": str(out)})
    orders = "Receiving: train message"
    before = deployment.processes.log("node-1").count(orders)
    deployment.flwr("run", app)
    until(lambda: deployment.processes.log("node-1").count(orders) == before + 2, 300, "the second order")
    deployment.processes.end("node-1", signal.SIGKILL)
    until(lambda: done(out) == 2, 300, "the second round")
    deployment.processes.end("superlink", signal.SIGKILL)
    deployment.start()
    deployment.flwr("run", app)

    def all_are_back() -> bool:
        node = deployment.processes.running.get("node-1")
        if node is None or node.poll() is not None:  # refused, as long as the link takes it to be there
            join(deployment, 1)
        return done(out) == 3

    until(all_are_back, 300, "the third round")
    first, second, third = rounds(out)
    assert first["participants"] == third["participants"] == [0, 1, 2]
    assert second["participants"] == [0, 2]
    (dropped,) = second["dropped"]
    assert dropped["participant"] == 1
    assert "Node Unavailable" in dropped["reason"]
    assert same(stored(out), alone(ALL, OTHERS, ALL, width=WIDTHS))
