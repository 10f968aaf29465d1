"""What a peer trains is what a simulation trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from group import PRESET
from noisy import NOISY
from PIL import Image

from msfusion.commands.peer_task import task_of
from msfusion.commands.training import federation_of, simulation_of
from msfusion.config import Config, load
from msfusion.data import Data
from msfusion.data import load as load_data
from msfusion.data.digest import divided
from msfusion.learn.submodels import materialised


def noisy(folder: Path, **settings: Any) -> Config:
    (folder / "noisy.py").write_text(NOISY)
    preset = folder / "noisy.toml"
    preset.write_text(PRESET.replace('"cnn"', f'"{folder}/noisy.py:Noisy"').replace("options = {", "# {"))
    return load(str(preset), settings)


def test_buffers_and_plain_tensors_are_those_of_a_simulation(tmp_path: Path) -> None:
    config = noisy(tmp_path, twins=None)  # they would change the simulation's buffers at once
    data = federation_of(config)
    x = data.test[0][0][None]
    model = simulation_of(config, data, None).model.eval()
    for number in (0, 3):
        task = task_of(config, number, own_data=False)
        buffers = dict(task.model.named_buffers())
        assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
        module = materialised(task.captured.narrow({}), torch.device("cpu")).eval()
        module.load_state_dict(model.state_dict())
        assert torch.equal(module(x), model(x))


def test_peers_with_other_draws_are_told_apart(tmp_path: Path) -> None:
    before = task_of(noisy(tmp_path), 0, own_data=False).fingerprint
    assert task_of(noisy(tmp_path), 1, own_data=False).fingerprint == before
    (tmp_path / "noisy.py").write_text(NOISY.replace("torch.randn(64)", "torch.randn(64) + 1e-6"))
    config = load(str(tmp_path / "noisy.toml"))
    assert task_of(config, 0, own_data=False).fingerprint != before


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "pathological"])
def test_data_of_ones_own_are_there_to_the_last_example(tmp_path: Path, partition: str) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text(PRESET)
    config = load(str(preset), {"data.partition": partition})
    assert len(task_of(config, 1, own_data=True).data) == 400  # type: ignore[arg-type]


def images(folder: Path, cats: int) -> Path:
    """10 images of two kinds."""
    for i in range(10):
        own = folder / ("cat" if i < cats else "dog")
        own.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(own / f"{i}.png")
    return folder


def test_peers_with_other_copies_of_the_data_they_divide_are_told_apart(tmp_path: Path) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text(PRESET)
    shared = {"data.name": "folder", "data.partition": "iid", "participants": 2}
    here, there, other = (
        load(str(preset), {**shared, "data.path": str(images(tmp_path / name, cats))})
        for name, cats in (("here", 5), ("there", 5), ("other", 6))
    )
    before = task_of(here, 0, own_data=False).fingerprint
    assert task_of(there, 1, own_data=False).fingerprint == before
    assert task_of(other, 1, own_data=False).fingerprint != before
    assert task_of(here, 0, own_data=True).fingerprint == task_of(other, 1, own_data=True).fingerprint


def test_texts_of_equal_length_are_told_apart(tmp_path: Path) -> None:
    def hashed(text: str) -> str:
        (tmp_path / "text.txt").write_text(text)
        data = Data(name="text", path=str(tmp_path / "text.txt"), tokenizer="byte", block=4)
        return divided(load_data(data, 2, 0).train[0])

    assert hashed("to be or not " * 20) == hashed("to be or not " * 20)
    assert hashed("to be or not " * 20) != hashed("to bet or no " * 20)
