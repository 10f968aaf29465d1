"""The app that msfusion flower new writes trains, in Flower's simulation, what msfusion simulate trains."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from deployment import BIN, Link, until
from inline import nodes_of, play
from points import same
from safetensors.torch import load_file
from torch import Tensor

from msfusion import cli
from msfusion.commands import evaluate
from msfusion.commands.flower import _lines, _literal, _task
from msfusion.commands.training import federation_of, simulation_of
from msfusion.config import load
from msfusion.errors import UserError
from msfusion.flower import Task
from msfusion.learn.disk_store import last_commit

SMALL = {
    "participants": 3,
    "rounds": 3,
    "data.limit": 120,
    "train.steps": 2,
    "train.batch": 16,
    "contrast.weight": 0.5,
}
OWN_MODEL = """
from torch import nn

def net(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def new(folder: Path, preset: str = "demo", **settings: Any) -> None:
    pairs = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    subprocess.run([BIN / "msfusion", "flower", "new", folder, preset, *pairs], check=True, text=True)


def simulated(preset: str = "demo", **settings: Any) -> dict[str, Tensor]:
    config = load(preset, settings)
    result = simulation_of(config, federation_of(config), None).run()
    return {name: p.detach() for name, p in result.model.named_parameters()}


def trained(folder: Path, names: Any) -> dict[str, Tensor]:
    values = load_file(folder)
    return {name: values[name] for name in names}


@pytest.mark.slow
@pytest.mark.deployed
def test_the_app_trains_in_flowers_simulation(tmp_path: Path) -> None:
    app, out = tmp_path / "my-digits", tmp_path / "out"
    new(app, **SMALL)
    assert sorted(str(p.relative_to(app)) for p in app.rglob("*.*")) == [
        "my_digits/__init__.py",
        "my_digits/client_app.py",
        "my_digits/server_app.py",
        "my_digits/task.py",
        "pyproject.toml",
    ]
    link = Link(tmp_path, ["--insecure", "--simulation"], secure=False)
    try:
        size = "num-supernodes=3 client-resources-num-cpus=1"
        link.flwr("run", app, "--run-config", f"out={json.dumps(str(out))}", "--federation-config", size)
        until(lambda: (last_commit(out / "model") or out).name == "000003", 300, "three rounds")
    finally:
        link.processes.end_all()
    subprocess.run([BIN / "msfusion", "export", out, tmp_path / "model.safetensors"], check=True)
    expected = simulated(**SMALL)
    assert same(trained(tmp_path / "model.safetensors", expected), expected)


@pytest.mark.slow
def test_an_app_around_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN_MODEL)
    settings = {**SMALL, "model.name": f"{tmp_path / 'mine.py'}:net", "model.options.width": 12}
    new(tmp_path / "own_app", **settings)
    (tmp_path / "mine.py").unlink()
    monkeypatch.syspath_prepend(tmp_path / "own_app")
    task: Task = importlib.import_module("own_app.task").task
    config = tomllib.loads((tmp_path / "own_app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    flat = dict(flattened(config["config"]))
    play(task, nodes_of(task, 3, tmp_path), {**flat, "out": str(tmp_path / "run")})
    (tmp_path / "mine.py").write_text(OWN_MODEL)
    expected = simulated(**settings)
    folder = last_commit(tmp_path / "run" / "model")
    assert folder is not None
    assert same(trained(folder / "model.safetensors", expected), expected)


def test_a_folder_of_hugging_face_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("hf:model", "hf:model#GPT2LMHeadModel"):
        monkeypatch.setattr(sys, "argv", ["msfusion", "flower", "new", "app", f'--set=model.name="{name}"'])
        with pytest.raises(SystemExit):
            cli.main()
        text = (tmp_path / "app" / "app" / "task.py").read_text()
        assert f'build("{name.replace("hf:", f"hf:{tmp_path}/")}", inputs' in text
        shutil.rmtree(tmp_path / "app")


@pytest.mark.parametrize("line", ["from layers import Block", "import layers.more as m", "import layers"])
@pytest.mark.parametrize("beside", ["layers.py", "layers/__init__.py"])
def test_a_model_that_imports_a_file_beside_its_own_is_refused(
    line: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text("")
    (tmp_path / "mine.py").write_text(line + OWN_MODEL)
    name = json.dumps(f"{tmp_path / 'mine.py'}:net")
    command = ["msfusion", "flower", "new", str(tmp_path / "app"), f"--set=model.name={name}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        cli.main()
    assert "mine.py imports layers: put all into one file, or install layers" in capsys.readouterr().err
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize("installed", ["in place", "as a copy", "another"])
def test_a_model_may_import_what_is_installed(
    installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").write_text("Block = 1\n")
    (tmp_path / "mine.py").write_text("from layers import Block\n" + OWN_MODEL)
    venv.create(tmp_path / "venv")
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    if installed == "in place":
        (site / "layers.pth").write_text(f"{tmp_path}\n")
    elif installed == "as a copy":
        shutil.copytree(tmp_path / "layers", site / "layers")
    else:
        (site / "layers.py").write_text("")
    name = json.dumps(f"{tmp_path / 'mine.py'}:net")
    command = ["msfusion", "flower", "new", str(tmp_path / "app"), f"--set=model.name={name}"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    refused = installed == "another"
    assert ended.value.code == (2 if refused else 0)
    assert ("imports layers" in capsys.readouterr().err) == refused
    assert (tmp_path / "app" / "app" / "model.py").exists() != refused


def flattened(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in table.items():
        own = flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
        pairs += own
    return pairs


@pytest.mark.parametrize(
    ("folder", "settings", "reason"),
    [
        ("taken", [], "expected a folder that is empty or absent"),
        ("import", [], "named as no word and no module of Python, got 'import'"),
        ("json", [], "named as no word and no module of Python, got 'json'"),
        ("msfusion", [], "named as no word and no module of Python, got 'msfusion'"),
        ("1st", [], "a letter first, got '1st'"),
        ("app", ["--set", "share=[0.3, 0.1]"], "expected one value for share"),
        ("app", ["--set", "loss_rate=0.5"], "expected loss_rate = 0.0 under Flower, got 0.5"),
        ("app", ["--set", "method=standalone"], "exchange something under Flower, got 'standalone'"),
    ],
)
def test_what_cannot_be_written_is_refused(
    folder: str, settings: list[str], reason: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    monkeypatch.setattr(sys, "argv", ["msfusion", "flower", "new", str(tmp_path / folder), *settings])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "app").exists()


@pytest.mark.slow
def test_flower_is_imported_on_first_use_only() -> None:
    code = "import sys, msfusion, msfusion.flower as f; f.Task, f.Settings; print('flwr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_without_flower_one_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['flwr'] = None; from msfusion.flower import client_app"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: expected Flower, but it cannot be imported" in done.stderr
    assert 'pip install "msfusion[flower]"' in done.stderr


def test_settings_of_peers_are_none_of_an_app(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('participants = 2\n[peers]\ngroup = "hospital"\nnames = ["anna", "ben"]\n')
    assert not [line for line in _lines(load(str(file), {})) if line.startswith("peers")]


@pytest.mark.parametrize("text", ["/srv/\U0001f5c2/\u00e4", "quo'\"te", "bell\x07", "back\\slash"])
def test_a_text_stands_as_it_is_in_the_app(text: str, tmp_path: Path) -> None:
    assert ast.literal_eval(_literal(text)) == text
    assert "\\ud" not in _literal(text)
    (line,) = (one for one in _lines(load("demo", {"device": text})) if one.startswith("device"))
    assert tomllib.loads(line) == {"device": text}


def test_a_model_whose_name_has_quotes_is_called_so() -> None:
    name = "hf:quo'\"te"
    assert ast.literal_eval(_task(load("demo", {"model.name": name}))["title"]) == name


def test_a_run_under_flower_is_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "CURRENT").write_text("000001")
    with pytest.raises(UserError, match=r"got one under Flower in .*, which has no test set"):
        evaluate.run(tmp_path, data=None, device=None, json=False)
