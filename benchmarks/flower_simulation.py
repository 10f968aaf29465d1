"""Ten participants of the demo: Flower's own FedAvg in Flower's simulation, beside this project.

Each row is a run of its own, in processes of its own, on the same digits, model, split and settings:

- Flower, FedAvg: the stock strategy of ``flwr.serverapp.strategy``; each client trains the full model, in
  a plain PyTorch loop over a ``DataLoader``, as Flower's tutorials have it.
- Flower, FedAvg, our steps: the same, each client training by ``msfusion.learn.local.train``, which the
  simulation uses too; there modules are kept from round to round and steps become scripts.
- Flower, msfusion: the app of ``msfusion flower new``; each client trains a share of 0.3.
- simulation, fedavg and msfusion: ``msfusion simulate``, without any engine; in one process, and with a
  worker per core, as it runs by default.

Seconds per round are the median of those between the ends of rounds, without the first; nobody scores
anything. With ``--repeats`` all rows are run in turn so often, every second time in reverse; a cell has the
median, and its ratio the spread (least to greatest) of ratios within a turn. Memory is the largest sum of the
resident memory of all processes of a run, looked at every half second, shared pages counted in each. Bytes
are those of the parameters that travel in a round, both ways.

    FLWR_TELEMETRY_ENABLED=0 python benchmarks/flower_simulation.py [--model mlp] [--repeats 3]

With a small MLP in place of the demo's convolutional model, participants are also trained at once by a
compiled program, and the app is left out.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import machine, spread

BIN = Path(sys.executable).parent
PARTICIPANTS, ROUNDS, SEED = 10, 60, 0  # so many rounds that steps have become scripts in most
MODELS = {"cnn": "", "mlp": "hidden = [256, 256]"}
"""Model -> its options, as in TOML."""
FIRST = "Flower, FedAvg"
"""The row that the others are compared with."""

FEDAVG_SERVER = """
import json, time
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
import torch
from stock.task import ROUNDS, net

app = ServerApp()
ends = []

class Timed(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        ends.append(time.time())
        return super().configure_train(server_round, arrays, config, grid)

@app.main()
def main(grid, context):
    model = net()
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes=10)
    config = ConfigRecord({"lr": 0.05})
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), train_config=config,
                   num_rounds=ROUNDS)
    ends.append(time.time())
    size = sum(p.nbytes for p in model.parameters())
    seconds = [b - a for a, b in zip(ends, ends[1:])]
    open(context.run_config["result"], "w").write(json.dumps({"seconds": seconds, "bytes": 20 * size}))
"""

FEDAVG_CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from stock.task import net
from stock.steps import fit

app = ClientApp()

@app.train()
def answer(message, context):
    torch.set_num_threads(1)
    model = net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples, loss = fit(model, context.node_config["partition-id"])
    metrics = MetricRecord({"num-examples": examples, "train_loss": loss})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
"""

PLAIN_STEPS = """
import functools, itertools
import torch
from torch.utils.data import DataLoader, TensorDataset
from stock.task import data

@functools.cache
def loader(number):
    own = data(number)
    images = TensorDataset(*own.batch(torch.arange(len(own))))
    return DataLoader(images, batch_size=32, shuffle=True, drop_last=True)

def fit(model, number):
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    running = 0.0
    batches = itertools.chain.from_iterable(itertools.repeat(loader(number)))
    for images, labels in itertools.islice(batches, 10):
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
    return len(loader(number).dataset), running / 10
"""

OUR_STEPS = """
from msfusion.learn.local import Train, train
from msfusion.learn.objective import Objective
from stock.task import data

def fit(model, number):
    own = data(number)
    loss = train(model, own, Objective(), Train(lr=0.05, batch=32, steps=10), 0.05, 0)
    return len(own), loss
"""

FEDAVG_TASK = """
import functools
import tomllib
import torch
from msfusion.data import Data, load
from msfusion.learn.local import seeded
from msfusion.models import InputSpec, build

ROUNDS, PARTICIPANTS, SEED, MODEL, OPTIONS = CONSTANTS

def net():
    with seeded(SEED, torch.device("cpu")):
        return build(MODEL, InputSpec((1, 8, 8), torch.float32, 10), tomllib.loads(OPTIONS))[0]

@functools.cache
def split():
    return load(Data(), PARTICIPANTS, SEED)

def data(number):
    return split().train[number]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the numbers alone")
    parser.add_argument(
        "--method", choices=["fedavg", "msfusion"], help="its rows alone, and Flower's FedAvg"
    )
    parser.add_argument("--model", choices=MODELS, default="cnn")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats: expected at least 1")
    model = arguments.model
    ways: dict[str, Callable[[Path], dict[str, float]]] = {
        FIRST: partial(stock, model=model, steps=PLAIN_STEPS),
        f"{FIRST}, our steps": partial(stock, model=model, steps=OUR_STEPS),
    }
    if arguments.method != "fedavg" and model == "cnn":
        ways["Flower, msfusion"] = own
    kinds = {", one worker": ["workers=1"], "": []}
    if model == "mlp":
        kinds[", at once, compiled"] = ["batched=on", "compile=true"]
    for method in [arguments.method] if arguments.method else ["fedavg", "msfusion"]:
        for kind, settings in kinds.items():
            ways[f"simulation, {method}{kind}"] = partial(
                simulated, method=method, model=model, settings=settings
            )
    with tempfile.TemporaryDirectory() as folder:
        turns = []
        for turn in range(arguments.repeats):
            order = list(ways.items())[:: -1 if turn % 2 else 1]
            turns.append(
                {name: way(Path(folder) / f"{turn}-{place}") for place, (name, way) in enumerate(order)}
            )
    print(json.dumps(turns) if arguments.json else text(turns, list(ways), model))


def stock(folder: Path, model: str, steps: str) -> dict[str, float]:
    """Flower's own strategy, whose clients train by ``steps``."""
    app = folder / "stock"
    (app / "stock").mkdir(parents=True)
    task = FEDAVG_TASK.replace("CONSTANTS", repr((ROUNDS, PARTICIPANTS, SEED, model, MODELS[model])))
    files = {"server_app": FEDAVG_SERVER, "client_app": FEDAVG_CLIENT, "task": task, "steps": steps}
    files["__init__"] = ""
    for name, code in files.items():
        (app / "stock" / f"{name}.py").write_text(code)
    run("msfusion", "flower", "new", folder / "like")
    project = (folder / "like" / "pyproject.toml").read_text().replace("like", "stock")
    head, _, _ = project.partition("[tool.flwr.app.config]")
    result = folder / "result.json"
    (app / "pyproject.toml").write_text(f"{head}[tool.flwr.app.config]\nresult = {json.dumps(str(result))}\n")
    peak = engine(folder, app, result)
    facts: dict[str, Any] = json.loads(result.read_text())
    return {"seconds": statistics.median(facts["seconds"][1:]), "memory": peak, "bytes": facts["bytes"]}


def own(folder: Path) -> dict[str, float]:
    """The project's app in Flower's simulation."""
    folder.mkdir()
    run("msfusion", "flower", "new", folder / "ours", "--rounds", ROUNDS)
    out = folder / "out"
    config = ["--run-config", f"out={json.dumps(str(out))}"]
    peak = engine(folder, folder / "ours", out / "model" / f"{ROUNDS:06d}", config)
    return {**recorded(out), "memory": peak}


def simulated(folder: Path, method: str, model: str, settings: list[str]) -> dict[str, float]:
    """The project's own simulation; scored after the last round only."""
    flags = ["--method", method, "--rounds", ROUNDS, "--out", folder, "--set", f"evaluate_every={ROUNDS}"]
    chosen = (
        [*settings, f"model.name={model}", f"model.options={{{MODELS[model]}}}"]
        if model != "cnn"
        else settings
    )
    command = [BIN / "msfusion", "simulate", "demo", *flags]
    command += [part for one in chosen for part in ("--set", one)]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    peak = watched(process, lambda: process.poll() is not None)
    return {**recorded(folder), "memory": peak}


def recorded(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()[1:]]
    seconds = [line["seconds"] for line in lines[1:-1]]
    return {"seconds": statistics.median(seconds), "bytes": lines[-1]["bytes"]}


def engine(folder: Path, app: Path, result: Path, config: list[str] | None = None) -> float:
    """Run an app in Flower's simulation until there is a result; the peak memory of all its processes."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    home = folder / "home"
    home.mkdir()
    text = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(text)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "FLWR_HOME": str(home), "OMP_NUM_THREADS": "1", "PATH": path}
    command = ["flower-superlink", "--insecure", "--simulation", "--port", str(port)]
    log = (folder / "superlink.log").open("w")
    link = subprocess.Popen(
        [*command, "--disable-runtime-dependency-installation"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    try:
        while link.poll() is None:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        size = f"num-supernodes={PARTICIPANTS} client-resources-num-cpus=1"
        run("flwr", "run", app, "here", "--federation-config", size, *(config or []), env=environment)
        return watched(link, result.exists)
    finally:
        link.terminate()
        link.wait(60)
        log.close()


def run(*command: object, env: dict[str, str] | None = None) -> None:
    first, *rest = map(str, command)
    done = subprocess.run([BIN / first, *rest], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def watched(process: subprocess.Popen[bytes], done: Callable[[], bool]) -> float:
    """Largest sum of resident memory, in bytes, of a process and all below it, until done."""
    peak, end = 0, time.monotonic() + 600
    while not done():
        if time.monotonic() > end or (process.poll() is not None and not done()):
            sys.exit(f"{process.args!r} did not finish")
        table = subprocess.run(["ps", "-eo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True)
        rows = [list(map(int, line.split())) for line in table.stdout.splitlines()]
        peak = max(peak, resident(process.pid, rows))
        time.sleep(0.5)
    return float(peak) * 1024


def resident(root: int, rows: list[list[int]]) -> int:
    mine = sum(rss for pid, _, rss in rows if pid == root)
    return mine + sum(resident(pid, rows) for pid, parent, _ in rows if parent == root)


def text(turns: list[dict[str, dict[str, float]]], names: list[str], model: str) -> str:
    lines = [
        f"{machine()}, flwr {version('flwr')}; "
        f"{model}, {PARTICIPANTS} participants, {ROUNDS} rounds of 10 steps of 32 digits, {len(turns)} turns",
        "",
        "| run | s per round | of Flower's | memory | of Flower's | bytes per round | of Flower's |",
        "|---|---|---|---|---|---|---|",
    ]
    forms = {"seconds": (1, ".3f", ""), "memory": (1e9, ".2f", " GB"), "bytes": (1e6, ".2f", " MB")}
    for name in names:
        cells = [name]
        for key, (unit, form, suffix) in forms.items():
            cells.append(f"{statistics.median(turn[name][key] for turn in turns) / unit:{form}}{suffix}")
            ratios = [turn[name][key] / turn[FIRST][key] for turn in turns]
            cells.append(spread(ratios) if max(ratios) > min(ratios) else f"{ratios[0]:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
