"""The public Python API: its names, and a user's own model, data and loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import msfusion

NAMES = ["Adapt", "Contrast", "Result", "Run", "Train", "UserError", "axes", "simulate", "write_report"]


def test_public_names() -> None:
    assert msfusion.__all__ == NAMES
    assert all(getattr(msfusion, name).__name__ == name for name in NAMES)


def test_the_axes_of_a_users_model() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    assert {name: info.size for name, info in msfusion.axes(model, (torch.randn(2, 3),)).axes.items()} == {
        "0.out": 8
    }


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        msfusion.nothing  # noqa: B018


def test_a_users_model_is_trained_evaluated_and_saved(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    torch.manual_seed(0)
    xs = torch.randn(5, 40, 4)
    data = [TensorDataset(x, (x[:, 0] > 0).long()) for x in xs]
    run = msfusion.Run(width=0.5, rounds=20, train=msfusion.Train(lr=0.1, batch=16))
    result = msfusion.simulate(net(), data[:4], data[4], run, out=tmp_path / "run")
    assert result.evaluation.accuracy is not None
    assert result.evaluation.accuracy > 0.9
    assert len(result.history) == 20
    result.save(tmp_path / "new" / "model.safetensors")
    other = net()
    assert load_model(other, tmp_path / "new" / "model.safetensors") == (set(), [])
    other.eval()
    with torch.no_grad():
        assert torch.equal(other(xs[4]), result.model(xs[4]))
    msfusion.write_report([tmp_path / "run"], tmp_path / "report.html")
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("method", ["fedavg-small", "standalone"])
def test_a_model_that_no_method_trained_is_not_saved(method: str, tmp_path: Path) -> None:
    data = [TensorDataset(torch.randn(20, 4), torch.arange(20) % 2)] * 2
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    result = msfusion.simulate(net, data, data[0], msfusion.Run(method=method, width=0.5, rounds=1))
    with pytest.raises(msfusion.UserError, match=f"that trains the full model, got {method}"):
        result.save(tmp_path / "model.safetensors")


def test_a_loss_of_ones_own() -> None:
    """Regression of y = x0 + x1: the report is the loss alone."""
    torch.manual_seed(0)
    xs = torch.randn(3, 64, 2)
    data = [TensorDataset(x, x.sum(1, keepdim=True)) for x in xs]
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    run = msfusion.Run(width=0.5, rounds=30)
    result = msfusion.simulate(model, data[:2], data[2], run, loss=nn.functional.mse_loss)
    assert result.evaluation.accuracy is None
    assert result.evaluation.loss < 0.1


class TwoOutputs(nn.Module):
    """Mean and log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 16)
        self.mean = nn.Linear(16, 1)
        self.variance = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.tanh(self.hidden(x))
        return {"mean": self.mean(x), "log_variance": self.variance(x)}


def test_a_loss_of_ones_own_takes_any_output() -> None:
    def likelihood(output: dict[str, Tensor], targets: Tensor) -> Tensor:
        return nn.functional.gaussian_nll_loss(output["mean"], targets, output["log_variance"].exp())

    torch.manual_seed(0)
    xs = torch.randn(3, 64, 2)
    data = [TensorDataset(x, x.sum(1, keepdim=True)) for x in xs]
    run = msfusion.Run(width=0.5, train=msfusion.Train(lr=0.01, clip=1.0))
    result = msfusion.simulate(TwoOutputs(), data[:2], data[2], run, loss=likelihood)
    assert result.coverage.share == 1
    first, last = (result.history[i]["evaluation"] for i in (0, -1))
    assert first is not None
    assert last is not None
    assert (last["loss"] or 0) < (first["loss"] or 0)


class Detector(nn.Module):
    """Classes, and boxes of four numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head, self.boxes = nn.Linear(2, 16), nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.tanh(self.hidden(x))
        return {"logits": self.head(x), "boxes": self.boxes(x)}


def test_a_loss_of_ones_own_sees_every_output_whole() -> None:
    seen = set()

    def loss(output: dict[str, Tensor], targets: Tensor) -> Tensor:
        seen.add((output["logits"].shape[-1], output["boxes"].shape[-1]))
        return output["logits"].square().mean() + (output["boxes"] - targets).square().mean()

    torch.manual_seed(0)
    data = [TensorDataset(x, x.sum(1, keepdim=True)) for x in torch.randn(3, 64, 2)]
    run = msfusion.Run(width=0.5, rounds=1, workers=1)
    msfusion.simulate(Detector(), data[:2], data[2], run, loss=loss)
    assert seen == {(3, 4)}


class Squares(Dataset[Any]):
    """A dataset that is not made of tensors."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3,), float(index)), index % 2


def test_any_dataset_of_pairs_serves() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    result = msfusion.simulate(model, [Squares(), Squares()], Squares(), msfusion.Run(share=0.6, rounds=2))
    assert result.evaluation.examples == 20


def test_the_default_run_needs_no_settings() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    assert len(msfusion.simulate(model, [Squares()], Squares()).history) == msfusion.Run().rounds


def test_a_dataset_of_no_pairs_is_refused() -> None:
    data = TensorDataset(torch.zeros(4, 3))
    with pytest.raises(msfusion.UserError, match="pairs"):
        msfusion.simulate(nn.Linear(3, 2), [data], data, msfusion.Run(width=0.5))


def test_a_dataset_without_length_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield torch.zeros(3), 0

    with pytest.raises(msfusion.UserError, match="length"):
        msfusion.simulate(nn.Linear(3, 2), [Stream()], Squares(), msfusion.Run(width=0.5))


def test_a_model_without_an_axis_to_cut_is_refused() -> None:
    with pytest.raises(msfusion.UserError, match="axis that can be cut"):
        msfusion.simulate(nn.Linear(3, 2), [Squares()], Squares(), msfusion.Run(width=0.5))
    whole = msfusion.Run(method="fedavg", rounds=1)
    assert msfusion.simulate(nn.Linear(3, 2), [Squares()], Squares(), whole).coverage.share == 1


def test_a_users_optimizer_state_is_no_matter_of_the_model() -> None:
    """The model is trained in place: its parameters are the ones that the user holds."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    weight = model[0].weight
    before = weight.detach().clone()
    result = msfusion.simulate(model, [Squares()], Squares(), msfusion.Run(width=1.0, rounds=1))
    assert result.model is model
    assert model[0].weight is weight
    assert weight.requires_grad
    assert not torch.equal(before, weight)


def test_likely_mistakes_are_a_sentence(tmp_path: Path) -> None:
    data = [TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.long)) for _ in range(2)]
    empty = TensorDataset(torch.randn(0, 4), torch.zeros(0, dtype=torch.long))

    def simulate(participants: Any = data, test: Any = data[0], **more: Any) -> msfusion.Result:
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        return msfusion.simulate(
            net, participants, test, more.pop("run", msfusion.Run(share=0.5, rounds=1)), **more
        )

    asked: list[int] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        asked.append(len(target))
        return nn.functional.cross_entropy(output, target)

    for test, what in ((empty, "a test set with at least one example"), (None, "NoneType for the test set")):
        with pytest.raises(msfusion.UserError, match=what):
            simulate(test=test, loss=loss)
    assert not asked
    with pytest.raises(msfusion.UserError, match="a list of datasets, one per participant"):
        simulate(data[0])
    with pytest.raises(msfusion.UserError, match=r"msfusion\.Run"):
        simulate(run={"width": 0.5})
    simulate(one for one in data)
    simulate(example=torch.randn(2, 4), out=str(tmp_path / "run"))
    with pytest.raises(msfusion.UserError, match="a list of run directories"):
        msfusion.write_report(str(tmp_path / "run"), tmp_path / "x.html")  # type: ignore[arg-type]
    msfusion.write_report([str(tmp_path / "run")], str(tmp_path / "x.html"))
