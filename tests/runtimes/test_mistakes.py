"""Mistakes in what ``simulate`` is given: each is one sentence, before the first round."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, FEATURES, TEST, net, participants, settings
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import msfusion
from msfusion import UserError
from msfusion.runtimes import checkpoint

PAIR = (torch.zeros(FEATURES), 0)


def simulate(**given: Any) -> msfusion.Result:
    own = {"model": net(norm=False), "participants": participants(), "test": TEST, "run": settings(rounds=1)}
    return msfusion.simulate(**own | given)


class Stream(IterableDataset[Any]):
    """Has a length all the same."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        yield PAIR


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return net()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"participants": [DataLoader(TEST)]}, "got a DataLoader for participant 0; give its .dataset"),
        ({"test": DataLoader(TEST)}, "got a DataLoader for the test set"),
        ({"participants": DataLoader(TEST)}, "a list of datasets, one per participant, got one DataLoader"),
        ({"participants": {"a": TEST}}, r"got a dict: give list\(participants\.values\(\)\)"),
        ({"participants": ["train"]}, "got str for participant 0"),
        ({"participants": [Stream()]}, "got Stream for participant 0"),
        (
            {"participants": [[(np.zeros(FEATURES), 0)] * 4]},
            r"of torch.float32, .* got torch.float64: convert",
        ),
        (
            {"participants": [[(torch.zeros(FEATURES, dtype=torch.uint8), 0)] * 4]},
            r"of torch.float32, .* got torch.uint8: convert",
        ),
        (
            {"test": [(torch.zeros(FEATURES + 1), 0)]},
            r"shape \(5,\) as those .* got \(6,\), which it does not",
        ),
        ({"test": [PAIR, (torch.zeros(FEATURES), CLASSES)]}, "labels from 0 to 2.*got 3; mend"),
        ({"model": nn.Linear}, "torch.nn.Module, got the class Linear"),
        ({"model": torch.relu}, "torch.nn.Module, got a builtin"),
        ({"model": on_meta()}, "a model with values, got first.weight on the meta device"),
        ({"out": Path(__file__)}, "a run directory, got the file"),
        ({"out": Path(__file__) / "run"}, "a run directory, got the file"),
    ],
)
def test_a_mistake_is_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        simulate(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"contrast": {"weigth": 1.0}}, "got 'contrast.weigth'; did you mean 'contrast.weight'"),
        ({"train": {"lrr": 3}}, "got 'train.lrr'; did you mean 'train.lr'"),
        ({"adapt": {"lst": 0.1}}, "got 'adapt.lst'; did you mean 'adapt.last'"),
    ],
)
def test_a_misspelt_setting_in_a_dict_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        simulate(run=msfusion.Run(width=0.5, rounds=1, **given))


def test_test_data_of_another_shape_serve_where_the_model_takes_them() -> None:
    pooled = nn.Sequential(
        nn.Conv1d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    data, test = ([(torch.ones(1, length), i % CLASSES) for i in range(4)] for length in (6, 9))
    assert simulate(model=pooled, participants=[data], test=test).evaluation.examples == 4


def test_a_model_may_take_inputs_of_another_precision() -> None:
    class Single(nn.Sequential):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x.float())

    data = [(np.ones(FEATURES), i % CLASSES) for i in range(4)]
    model = Single(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    assert simulate(model=model, participants=[data], test=data).evaluation.examples == 4


def test_gradients_may_be_off_where_a_run_is_called() -> None:
    with torch.no_grad():
        result = simulate()
        assert not torch.is_grad_enabled()
    assert result.history[0]["train_loss"] == simulate().history[0]["train_loss"]
    with torch.inference_mode(), pytest.raises(UserError, match="training outside of"):
        simulate()


def test_a_file_is_not_written_over_a_directory_nor_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place, words in (
        ("folder", "a file to write to, got the directory"),
        ("file/x", "a file in its way"),
    ):
        with pytest.raises(UserError, match=words):
            checkpoint.write(tmp_path / place, {"x": torch.zeros(1)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
