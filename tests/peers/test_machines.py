"""What the README and docs/peers.md say of several machines, as it stands there, on several machines."""

import re
import shutil
from pathlib import Path

import pytest
from machines import Machines, why_not
from sklearn.datasets import load_digits

from msfusion.config import load
from msfusion.records import read

pytestmark = pytest.mark.deployed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def allowed() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def section(path: str) -> tuple[str, list[str]]:
    """The configuration and the commands of the section on several machines, placeholders filled in."""
    text = (ROOT / path).read_text().split("## On several machines")[1].split("\n## ")[0]
    blocks = re.findall(r"```(?:toml)?\n(.*?)```", text, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if "msfusion" in line]
    configuration = next(block for block in blocks if "participants =" in block)
    return configuration, [line.replace("GROUP", "ours") for line in commands]


def images(folder: Path, first: int) -> None:
    """Handwritten digits as images, a sub-folder per class; every second one."""
    from PIL import Image

    digits = load_digits()
    for i in range(first, 400, 2):
        own = folder / str(digits.target[i])
        own.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype("uint8")).save(own / f"{i}.png")


def prepared(machines: Machines, names: list[str], configuration: str, certs: list[str]) -> None:
    """Certificates made on the first machine; to each its own key and everybody's certificate."""
    made = machines.folder(names[0]) / "certs"
    for line in certs:
        assert machines.start(names[0], line).wait(timeout=100) == 0, machines.log(names[0])
    for name in names[1:]:
        own = machines.folder(name) / "certs"
        shutil.copytree(made, own, ignore=lambda folder, files: [f for f in files if f.endswith(".key")])
        shutil.copy(made / f"{name}.key", own)
    for i, name in enumerate(names):
        (machines.folder(name) / "ours.toml").write_text(configuration)
        images(machines.folder(name) / "data", i % 2)


def assert_trained(machines: Machines, rounds: int) -> None:
    runs = [read(machines.folder(name) / "runs" / f"peer-{name}") for name in ("anna", "ben")]
    assert [[line["participants"] for line in run.rounds] for run in runs] == [[[0, 1]] * rounds] * 2
    ends = [
        (machines.folder(name) / "runs" / f"peer-{name}" / "committed.json").read_text()
        for name in ("anna", "ben")
    ]
    assert ends[0] == ends[1]
    assert all(line["own"]["here"] == [0, 1] for run in runs for line in run.rounds)


@pytest.mark.parametrize("path", ["README.md", "docs/peers.md"])
def test_two_machines(tmp_path: Path, path: str) -> None:
    configuration, commands = section(path)
    certs = [line for line in commands if "certs new" in line or "certs add" in line]
    peers = {
        name: re.sub(r"^\w+\$ *", "", line).replace("MY_DATA", "data").replace("~/images", "data")
        for line in commands
        for name in ("anna", "ben")
        if f"--participant {name}" in line
    }
    assert "anna.example.org" in peers["ben"]
    hosts = {"anna.example.org": "10.77.0.1"}
    with Machines(tmp_path, ["anna", "ben"], [("anna", "ben")], hosts) as machines:
        prepared(machines, ["anna", "ben"], configuration, certs)
        started = [machines.start(name, line) for name, line in peers.items()]
        codes = [one.wait(timeout=400) for one in started]
        assert codes == [0, 0], machines.log("anna") + machines.log("ben")
        assert_trained(machines, load(str(machines.folder("anna") / "ours.toml")).rounds)
        scored = read(machines.folder("anna") / "runs" / "peer-anna").rounds[-1]["evaluation"]
        assert scored is not None
        assert scored["accuracy"] > 0.5


def test_machines_that_reach_only_a_router(tmp_path: Path) -> None:
    """Anna's and Ben's networks share nothing but the router's machine, which forwards no packets."""
    configuration, commands = section("docs/peers.md")
    certs = [line for line in commands if "certs new" in line or "certs add" in line]
    text = re.sub(r"\s+", " ", (ROOT / "docs/peers.md").read_text())
    route = re.search(r"`(msfusion peer ours.toml --router [^`]*)`", text)
    reach = re.search(r"`(--outbound --connect) ROUTER:7447`", text)
    assert route
    assert reach
    links = [("anna", "router"), ("ben", "router")]
    with Machines(tmp_path, ["router", "anna", "ben"], links, {}) as machines:
        prepared(machines, ["router", "anna", "ben"], configuration, [*certs, "msfusion certs add router"])
        machines.start("router", route[1])
        own = "msfusion peer ours.toml --data data --certs certs --rounds 5"
        pair = [
            machines.start(name, f"{own} --participant {name} {reach[1]} 10.77.{i}.2:7447")
            for i, name in enumerate(("anna", "ben"))
        ]
        codes = [one.wait(timeout=200) for one in pair]
        assert codes == [0, 0], machines.log("anna") + machines.log("ben") + machines.log("router")
        assert_trained(machines, 5)
