"""A SuperLink and its ServerApp under a memory limit below the size of the model that they serve.

The SuperLink is in a control group of the kernel (benchmarks/limited.py; needs root), and with it the
ServerApp that it starts: all that they allocate and all pages of files count. Two SuperNodes, outside the
group, train a small share each, for two rounds. Needs about 8 GB of disk.

    sudo python benchmarks/flower_hub.py
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from limited import Limited, large
from machine import machine

from msfusion.commands.peer import free_port
from msfusion.records import read

LIMIT = 2_000_000_000
NODES, ROUNDS, SHARE = 2, 2, 0.03
PRESET = large(NODES, SHARE, ROUNDS)
BIN = Path(sys.executable).parent
TOO_LONG = 900  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where 8 GB may lie meanwhile")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        hub, run = served(Path(folder))
        records = read(run)
    parameters = records.header["model"]["parameters"]
    trained = [line["participants"] for line in records.rounds]
    moved = [line["bytes"] for line in records.rounds]
    print(machine())
    print(f"{parameters:,} parameters: {4 * parameters / 1e9:.2f} GB; limit {LIMIT / 1e9:.2f} GB")
    print(f"trained by {trained}; moved {moved} bytes")
    print(f"peak of the group {hub.most / 1e9:.2f} GB, without pages of files {hub.anonymous / 1e9:.2f} GB")


def served(folder: Path) -> tuple[Limited, Path]:
    """The SuperLink, which has ended, and the directory of the run."""
    port, home, run = free_port(), folder / "home", folder / "run"
    home.mkdir()
    connection = (
        f'[superlink]\ndefault = "hub"\n[superlink.hub]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    (home / "config.toml").write_text(connection)
    own = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    environment = {**os.environ, **own}
    app = written(folder, run, environment)
    link = [BIN / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port]
    link += ["--disable-runtime-dependency-installation", "--database", folder / "state.db"]
    hub = Limited([str(part) for part in link], LIMIT, own)
    with ExitStack() as started:
        started.callback(hub.end)
        time.sleep(10)
        for number in range(NODES):
            node = [BIN / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            node += ["--host", "127.0.0.1", "--port", free_port()]
            node += ["--node-config", f'partition-id={number} state="{folder / str(number)}"']
            process = subprocess.Popen(
                [str(part) for part in node], env=environment, cwd=folder, start_new_session=True
            )
            started.callback(os.killpg, process.pid, signal.SIGKILL)  # with what it has started
        subprocess.run(["flwr", "run", app, "hub"], env=environment, cwd=folder, check=True)
        end = time.monotonic() + TOO_LONG
        while not (run / "records.jsonl").exists() or len(read(run).rounds) < ROUNDS:
            if time.monotonic() > end:
                sys.exit(f"{ROUNDS} rounds were not done within {TOO_LONG} s: {hub.reason}")
            time.sleep(1)
    return hub, run


def written(folder: Path, run: Path, environment: dict[str, str]) -> Path:
    """The Flower app of the preset."""
    preset, app = folder / "big.toml", folder / "big"
    preset.write_text(PRESET)
    subprocess.run(["msfusion", "flower", "new", app, str(preset)], env=environment, check=True)
    project = app / "pyproject.toml"
    lines = project.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("out =", "waiting."))]
    at = kept.index("[tool.flwr.app.config]") + 1
    new = [f"out = {json.dumps(str(run))}", "waiting.patience = 600.0", "waiting.deadline = 600.0"]
    project.write_text("\n".join([*kept[:at], *new, *kept[at:], ""]))
    return app


if __name__ == "__main__":
    main()
