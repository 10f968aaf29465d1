"""A narrow model equals the full model in which the other units are silenced.

A unit is silenced by zeros in the weights that read it; those that read the units which are left are scaled
by size / width (core/scale.py). Norm-free models agree to the last bits of float64, so do norms over whole
axes; batch norm, whose statistics are per channel, agrees in training and in evaluation; a norm over a cut
axis takes its statistics over the window.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msfusion.capture import Capture, capture
from msfusion.capture.graph import named_tensors
from msfusion.core.axes import Selection, count, runs_of
from msfusion.core.merge import extract
from msfusion.learn.submodels import SubModels
from msfusion.models import build


def double(model: nn.Module) -> nn.Module:
    """In float64, with values in every tensor that may be a neutral one at the start."""
    model = model.double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in named_tensors(model).values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype) / 4)
    return model


def narrow(
    model: nn.Module, captured: Capture, x: Tensor, selection: Selection, power: float = 1.0
) -> nn.Module:
    submodels = SubModels(captured, (x,), torch.device("cpu"), power)
    return submodels.load(selection, extract(named_tensors(model), captured.axes, selection))


def read_only(weight: Tensor, kept: list[int], size: int, inner: int = 1) -> None:
    """Silence all units but ``kept`` in a weight that reads ``size`` units of ``inner`` columns each, and
    scale those up, as the scale rule does."""
    silence(weight, kept, size, inner)
    with torch.no_grad():
        weight.mul_(size / len(kept))


def silence(weight: Tensor, kept: list[int], size: int, inner: int = 1) -> None:
    """Silence all units but ``kept``, without the scale rule: a norm follows directly."""
    columns = torch.zeros(size * inner, dtype=weight.dtype)
    for unit in kept:
        columns[unit * inner : (unit + 1) * inner] = 1
    shape = [1, -1] + [1] * (weight.dim() - 2)
    with torch.no_grad():
        weight.mul_(columns.view(shape))


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-12, atol=1e-12)


WINDOWS = [([0, 1, 2], [0, 1]), ([6, 7, 0], [5, 0]), ([2, 5, 7], [1, 4]), ([3], [2]), (list(range(8)), [4])]
"""Units that are kept of two axes of 8 and 6: nested, around the end, scattered, single, whole."""


@pytest.mark.parametrize(("first", "second"), WINDOWS)
def test_perceptron(first: list[int], second: list[int]) -> None:
    model, (x,) = build("mlp", None, {"inputs": 5, "hidden": [8, 6], "classes": 3})
    model, x = double(model), x.double()
    captured = capture(model, (x,))
    sub = narrow(model, captured, x, {"hidden.0.out": runs_of(first), "hidden.1.out": runs_of(second)})
    silenced = copy.deepcopy(model)
    read_only(silenced.hidden[1].weight, first, 8)
    read_only(silenced.head.weight, second, 6)
    assert close(sub(x), silenced(x))
    assert sub.hidden[1].weight.shape == (len(second), len(first)), "narrow, not masked"


class Convolutions(nn.Module):
    """Two convolutions and two linear layers, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Linear(6 * 16, 4)
        self.d = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.d(torch.tanh(self.c(x.flatten(1))))


@pytest.mark.parametrize(("first", "second"), WINDOWS)
def test_convolutions(first: list[int], second: list[int]) -> None:
    """A linear layer reads 16 pixels of each channel."""
    torch.manual_seed(0)
    model, x = double(Convolutions()), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    captured = capture(model, (x,))
    third = [1, 3]
    sub = narrow(
        model, captured, x, {"a.out": runs_of(first), "b.out": runs_of(second), "c.out": runs_of(third)}
    )
    silenced = copy.deepcopy(model)
    read_only(silenced.b.weight, first, 8)
    read_only(silenced.c.weight, second, 6, inner=16)
    read_only(silenced.d.weight, third, 4)
    assert close(sub(x), silenced(x))


def test_the_gradients_are_those_of_the_units_that_are_left() -> None:
    model, (x,) = build("mlp", None, {"inputs": 5, "hidden": [8, 6], "classes": 3})
    model, x = double(model), x.double()
    captured = capture(model, (x,))
    first, second = [6, 7, 0], [5, 0]
    windows = {"hidden.0.out": runs_of(first), "hidden.1.out": runs_of(second)}
    sub = narrow(model, captured, x, windows)
    silenced = copy.deepcopy(model)
    read_only(silenced.hidden[1].weight, first, 8)
    read_only(silenced.head.weight, second, 6)
    for module in (sub, silenced):
        F.cross_entropy(module(x), torch.tensor([0, 2])).backward()
    full = {name: p.grad for name, p in silenced.named_parameters()}
    expected = extract(full, captured.axes, windows)
    for name, parameter in sub.named_parameters():
        assert close(parameter.grad, expected[name])


@pytest.mark.parametrize(("power", "factor"), [(1.0, 4.0), (0.5, 2.0), (0.0, 1.0)])
def test_the_power_of_the_scale_rule(power: float, factor: float) -> None:
    model, (x,) = build("mlp", None, {"inputs": 5, "hidden": [8], "classes": 3})
    captured = capture(model, (x,))
    sub = narrow(model, captured, x, {"hidden.0.out": runs_of([2, 3])}, power)
    assert torch.equal(sub.head.weight, model.head.weight[:, 2:4] * factor)
    assert torch.equal(sub.hidden[0].weight, model.hidden[0].weight[2:4])
    assert torch.equal(sub.head.bias, model.head.bias)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_takes_its_statistics_per_channel_of_the_window(training: bool) -> None:
    model, (x,) = build("cnn", None, {"width": 4, "depth": 2, "hidden": 8, "image": 8, "classes": 3})
    model, x = double(model), x.double()
    captured = capture(model, (x,))
    first, second, third = [3, 0], [1, 2, 6], [0, 4, 5, 7]
    axes = ("blocks.0.conv.out", "blocks.1.conv.out", "hidden.out")
    sub = narrow(model, captured, x, dict(zip(axes, map(runs_of, (first, second, third)), strict=True)))
    silenced = copy.deepcopy(model)
    silence(silenced.blocks[1].conv.weight, first, 4)
    read_only(silenced.hidden.weight, second, 8)
    read_only(silenced.head.weight, third, 8)
    sub.train(training)
    silenced.train(training)
    assert close(sub(x), silenced(x))
    kept = sorted(second)
    assert close(sub.blocks[1].norm.running_var, silenced.blocks[1].norm.running_var[kept])


def test_heads_and_hidden_units_of_a_transformer_under_whole_norms() -> None:
    """Layer norm over the whole residual stream: one of two heads and 5 of 32 hidden units are left."""
    options = {"layers": 1, "heads": 2, "embed": 8, "block": 6, "vocabulary": 7}
    model, (x,) = build("gpt", None, options)
    model = double(model)
    captured = capture(model, (x,))
    hidden = [30, 31, 0, 1, 2]
    block = "blocks.0"
    windows = {
        f"{block}.attention.qkv.out": runs_of([1]),
        f"{block}.feed_forward.expand.out": runs_of(hidden),
    }
    sub = narrow(model, captured, x, windows)
    silenced = copy.deepcopy(model)
    read_only(silenced.blocks[0].attention.project.weight, [1], 2, inner=4)
    read_only(silenced.blocks[0].feed_forward.project.weight, hidden, 32)
    assert close(sub.eval()(x), silenced.eval()(x))
    assert sub.blocks[0].attention.project.weight.shape == (8, 4)


class Normed(nn.Module):
    """A norm between two linear layers, over the axis that they share."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.norm = norm
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.first(x))))


def test_layer_norm_over_a_cut_axis_takes_its_statistics_over_the_window() -> None:
    model, x = double(Normed(nn.LayerNorm(8))), torch.randn(4, 5, dtype=torch.float64)
    captured = capture(model, (x,))
    kept = [6, 7, 0]
    sub = narrow(model, captured, x, {"first.out": runs_of(kept)})
    rows = sorted(kept)
    hidden = F.linear(x, model.first.weight[rows], model.first.bias[rows])
    hidden = F.layer_norm(hidden, (3,), model.norm.weight[rows], model.norm.bias[rows])
    expected = F.linear(torch.relu(hidden), model.head.weight[:, rows] * 8 / 3, model.head.bias)
    assert close(sub(x), expected)


def test_group_norm_is_cut_by_whole_groups_and_stays_exact() -> None:
    """4 groups of 2: a unit of the axis is a group; the statistics of those that are left stay."""
    model, x = double(Normed(nn.GroupNorm(4, 8))), torch.randn(4, 5, dtype=torch.float64)
    captured = capture(model, (x,))
    (axis,) = captured.axes.cuttable
    assert captured.axes.axes[axis].size == 4
    sub = narrow(model, captured, x, {axis: runs_of([3, 0])})
    silenced = copy.deepcopy(model)
    read_only(silenced.head.weight, [0, 3], 4, inner=2)
    assert close(sub(x), silenced(x))


# --- the sub-models themselves


def test_loading_and_unloading_gives_the_values_back() -> None:
    model, (x,) = build("mlp", None, {"inputs": 5, "hidden": [8, 6], "classes": 3})
    captured = capture(model, (x,))
    windows = {"hidden.0.out": runs_of([6, 7, 0]), "hidden.1.out": runs_of([1, 2, 3])}
    values = extract(named_tensors(model), captured.axes, windows)
    submodels = SubModels(captured, (x,), torch.device("cpu"), 1.0)
    submodels.load(windows, values)
    back = submodels.unload(windows, values)
    assert back.keys() == values.keys()
    assert all(torch.equal(back[name], values[name]) for name in values)


def test_what_is_unloaded_does_not_change_with_the_next_load() -> None:
    model, (x,) = build("mlp", None, {"inputs": 5, "hidden": [8], "classes": 3})
    captured = capture(model, (x,))
    submodels = SubModels(captured, (x,), torch.device("cpu"), 1.0)
    first, second = ({"hidden.0.out": runs_of([unit])} for unit in (0, 1))
    values = named_tensors(model)
    given = extract(values, captured.axes, first)
    submodels.load(first, given)
    kept = submodels.unload(first, given)
    copies = {name: tensor.clone() for name, tensor in kept.items()}
    submodels.load(second, extract(values, captured.axes, second))
    assert all(torch.equal(copies[name], kept[name]) for name in kept)


def test_a_window_that_moves_fills_the_same_module() -> None:
    model, (x,) = build("mlp", None, {"inputs": 5, "hidden": [8], "classes": 3})
    captured = capture(model, (x,))
    submodels = SubModels(captured, (x,), torch.device("cpu"), 1.0)
    modules = []
    for units in ([0, 1], [4, 5], [7, 0], [1, 2, 3]):
        windows = {"hidden.0.out": runs_of(units)}
        modules.append(submodels.load(windows, extract(named_tensors(model), captured.axes, windows)))
        assert torch.equal(modules[-1].hidden[0].bias, model.hidden[0].bias[sorted(units)])
    assert modules[0] is modules[1] is modules[2]
    assert modules[3] is not modules[2]


def test_tied_tensors_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 8)
            self.hidden = nn.Linear(8, 8)
            self.head = nn.Linear(8, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.hidden(self.embed(x))))

    model, x = Tied(), torch.zeros(2, 3, dtype=torch.int64)
    captured = capture(model, (x,))
    windows = {
        axis: runs_of(range(info.size // 2)) for axis, info in captured.axes.axes.items() if not info.whole
    }
    assert windows
    sub = narrow(model, captured, x, windows)
    assert sub.head.weight is sub.embed.weight
    assert set(named_tensors(sub)) == set(named_tensors(model))
    assert {name: tuple(t.shape) for name, t in named_tensors(sub).items()} == {
        name: captured.axes.shape(name, {axis: count(units) for axis, units in windows.items()})
        for name in named_tensors(model)
    }
