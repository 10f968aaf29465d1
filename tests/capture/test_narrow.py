"""Narrow modules: what is refused, and the captured graph as a forward."""

import copy
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from laws import captured, filled, halved, last_units, model_of, run
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from zoo import ROWS, CharGRUCell, CharLSTM, NanoGPT, Row, tokens

from msfusion.capture import capture, permutation_errors
from msfusion.capture.graph_module import runs_graph, with_graph_forward
from msfusion.capture.narrow import narrow_copy
from msfusion.errors import UserError


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"nothing": 2}, "widths of axes of the model, got 'nothing'"),
        ({"0.out": 0}, "a width of 1 to 48 for axis 0.out, got 0"),
        ({"0.out": 49}, "a width of 1 to 48 for axis 0.out, got 49"),
    ],
)
def test_widths_that_the_model_does_not_have(widths: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        captured(row_named("mlp")).narrow(widths)


def test_the_full_model_may_go_away_and_change() -> None:
    model = NanoGPT(layers=1)
    taken = capture(model, *tokens()(2))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model.lm_head = nn.Linear(2, 2)
    assert {name: p.shape for name, p in taken.narrow({}).named_parameters()} == shapes
    assert all(p.is_meta for p in taken.narrow({}).parameters())


@pytest.mark.parametrize(
    ("make", "layer", "weight"),
    [(CharLSTM, "lstm", "weight_hh_l0"), (lambda: CharGRUCell(False), "cell", "weight_hh")],
)
def test_recurrent_layers_whose_weights_are_computed_know_their_sizes(
    make: Callable[[], nn.Module], layer: str, weight: str
) -> None:
    model = make()
    weight_norm(model.get_submodule(layer), weight)
    narrow = capture(model, *tokens()(2)).narrow({"embed.out": 12}).get_submodule(layer)
    assert (narrow.input_size, narrow.hidden_size) == (12, 32)


def test_a_model_that_cannot_be_copied_is_refused_in_one_sentence() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.lock = threading.Lock()
    with pytest.raises(UserError, match=r"copy\.deepcopy can copy, got TypeError"):
        capture(model, (torch.randn(2, 4),))


def test_a_model_larger_than_any_memory_is_captured_and_cut() -> None:
    with torch.device("meta"):
        wide = 1_000_000
        model = nn.Sequential(nn.Linear(8, wide), nn.ReLU(), nn.Linear(wide, wide), nn.Linear(wide, 2))
    narrow = capture(model, (torch.randn(2, 8),)).narrow({"0.out": 10, "2.out": 20}).to_empty(device="cpu")
    assert tuple(narrow[2].weight.shape) == (20, 10)


def test_ties_and_modes_are_kept() -> None:
    taken = capture(NanoGPT(layers=1).eval(), *tokens()(2))
    narrow = taken.narrow({"wte.out": 16})
    assert narrow.wte.weight is narrow.lm_head.weight
    assert not narrow.training


def test_the_own_forward_is_kept_where_it_follows() -> None:
    row = row_named("nanogpt")
    assert not runs_graph(captured(row).narrow(halved(row)))
    assert runs_graph(captured(row).narrow(halved(row, without=row.residual)))
    assert not runs_graph(
        captured(row_named("gpt")).narrow(halved(row_named("gpt"), without=("tokens.out",)))
    )


class Sizes:
    """A configuration full of numbers that are all the same."""

    def __init__(self) -> None:
        for i in range(30):
            setattr(self, f"size{i}", 8)


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Sizes()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, self.config.size7))


def test_one_of_many_equal_numbers_is_found_and_only_in_a_copy_of_the_configuration() -> None:
    model = Configured()
    narrow = capture(model, (torch.randn(2, 6),)).narrow({"a.out": 4})
    assert narrow.to_empty(device="cpu")(torch.randn(3, 6)).shape == (3, 2)
    assert narrow.config.size7 == 4
    assert model.config.size7 == 8


@dataclass(frozen=True)
class Frozen:
    width: int = 8


@dataclass(frozen=True, slots=True)
class Slotted:
    width: int = 8


class Model(BaseModel, frozen=True):
    width: int = 8


class Named(NamedTuple):
    width: int = 8
    other: str = "same"


class Plan(list[int]):
    """A list that is not made from a list."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(sizes)


class Holding(nn.Module):
    """Its width is in something that it holds."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held, self.a, self.b = held, nn.Linear(6, 8), nn.Linear(8, 2)

    def width(self) -> int:
        held = self.held
        return held.width if hasattr(held, "width") else held[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, self.width()))


@pytest.mark.parametrize(
    "held", [Frozen(), Model(), Named(), [8, [1, 2], "M", True], (8, None), torch.Size([8])]
)
def test_sizes_are_set_in_copies_of_what_cannot_be_changed(held: Any) -> None:
    model = Holding(held)
    narrow = capture(model, (torch.randn(2, 6),)).narrow({"a.out": 4})
    assert not runs_graph(narrow)
    assert (narrow.width(), model.width()) == (4, 8)
    assert type(narrow.held) is type(held)
    if isinstance(held, tuple | list):
        assert list(narrow.held[1:]) == list(held[1:])


@pytest.mark.parametrize("held", [Slotted(), Plan(8, 3)])
def test_the_graph_stands_in_for_what_cannot_be_made_with_another_size(held: Any) -> None:
    assert runs_graph(capture(Holding(held), (torch.randn(2, 6),)).narrow({"a.out": 4}))


class Numbered(nn.Module):
    """Computes with a number that has the value of a size: of one that stays (``embed``), of the number of
    heads (``temperature``), or of the channels, which it is as well (``alpha``)."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.heads, self.size = what, 4, 8
        self.embed = 32 if what == "embed" else 33
        self.temperature = 4 if what == "temperature" else 3
        self.alpha = 16
        self.qkv, self.out = nn.Linear(32, 3 * 32), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, self.heads, self.size).transpose(1, 3).unbind(2)
        logits = q @ k.transpose(-2, -1)
        logits = logits / (self.embed**0.5 if self.what == "embed" else self.temperature)
        y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(len(x), -1, self.heads * self.size)
        y = self.up(x + self.out(y))
        return self.down(y.view(len(x), -1, self.alpha).relu() / self.alpha if self.what == "alpha" else y)


@pytest.mark.parametrize("what", ["embed", "temperature", "alpha"])
def test_numbers_that_are_computed_with_stay_whatever_size_they_equal(what: str) -> None:
    taken = capture(Numbered(what), (torch.randn(2, 3, 32),))
    widths = {axis: taken.axes.axes[axis].size // 2 for axis in taken.axes.cuttable}
    assert sorted(taken.axes.axes[axis].size for axis in widths) == [4, 16]
    narrow = taken.narrow(widths)
    assert (narrow.embed, narrow.temperature) == (taken.source.model.embed, taken.source.model.temperature)
    assert runs_graph(narrow) == (what == "alpha")
    assert runs_graph(narrow) or narrow.heads == 2


class Shaped(nn.Module):
    """Takes a number from the shape of a tensor (``shape``) or from an attribute that repeats one."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by, self.table, self.head = by, nn.Embedding(9, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        return self.head(h * (h.shape[-1] if self.by == "shape" else self.table.embedding_dim) ** 0.5)


@pytest.mark.parametrize("by", ["shape", "attribute"])
def test_numbers_may_follow_shapes_and_no_attributes(by: str) -> None:
    taken = capture(Shaped(by), (torch.randint(9, (2, 3)),))
    narrow = taken.narrow({"table.out": 2})
    assert runs_graph(narrow) == (by == "attribute")
    narrow = narrow.to_empty(device="cpu")
    for parameter in narrow.parameters():
        nn.init.ones_(parameter)
    number = 2 if by == "shape" else 8
    torch.testing.assert_close(
        narrow(torch.zeros(1, 1, dtype=torch.long)), torch.full((1, 1, 5), 2 * number**0.5 + 1)
    )


class Literal(nn.Module):
    """Sizes written out, so the graph stands in for the forward; batch norm and dropout differ by mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        x = F.relu(self.norm(self.conv(x))) * torch.full((8, 1, 1), scale)
        return self.head(self.drop(x.view(-1, 8 * 16)))


def literal() -> nn.Module:
    torch.manual_seed(0)
    taken = capture(Literal(), (torch.randn(2, 3, 4, 4),), {"scale": 2.0})
    narrow = taken.narrow({"conv.out": 3}).to_empty(device="cpu")
    assert runs_graph(narrow)
    for tensor in (*narrow.parameters(), *narrow.buffers()):
        tensor.data = torch.randn(tensor.shape).abs().to(tensor.dtype)
    return narrow


def test_a_graph_forward_has_dropout_and_batch_statistics_in_train_mode_only() -> None:
    narrow, x = literal(), torch.randn(6, 3, 4, 4)
    narrow.eval()
    before = copy.deepcopy(narrow.state_dict())
    assert torch.equal(narrow(x, scale=2.0), narrow(x, scale=2.0))
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())
    narrow.train()
    assert not torch.equal(narrow(x, scale=2.0), narrow(x, scale=2.0))
    momentum, mean = 0.1, narrow.conv(x).mean((0, 2, 3))
    once = (1 - momentum) * before["norm.running_mean"] + momentum * mean
    expected = (1 - momentum) * once + momentum * mean
    torch.testing.assert_close(narrow.norm.running_mean, expected)
    assert narrow.norm.num_batches_tracked == before["norm.num_batches_tracked"] + 2


def test_a_graph_forward_runs_on_another_device_and_under_autocast() -> None:
    narrow, x = literal(), torch.randn(6, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(x, scale=2.0).dtype == torch.bfloat16
    assert narrow.to("meta")(x.to("meta"), scale=2.0).shape == (6, 5)


def test_copies_of_a_graph_forward_are_independent() -> None:
    narrow, x = literal().eval(), torch.randn(6, 3, 4, 4)
    other = copy.deepcopy(narrow)
    with torch.no_grad():
        other.head.bias += 1
    torch.testing.assert_close(other(x, scale=2.0), narrow(x, scale=2.0) + 1)
    other.load_state_dict(narrow.state_dict())
    assert torch.equal(other(x, scale=2.0), narrow(x, scale=2.0))


def test_inputs_of_another_form_are_refused() -> None:
    narrow, x = literal(), torch.randn(6, 3, 4, 4)
    for args, kwargs in (
        ((x,), {}),
        ((x, x), {"scale": 2.0}),
        ((x,), {"scale": 3.0}),
        ((x[0],), {"scale": 2.0}),
    ):
        with pytest.raises(UserError, match=r"form that was captured \(1 positional, scale=, "):
            narrow(*args, **kwargs)


class Unfollowable(nn.Module):
    """Its axes are cuttable, but its control flow counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[1] < 8:
            raise ValueError("too narrow")
        return self.b(x)


def test_control_flow_on_a_width_runs_as_the_full_model_ran() -> None:
    narrow = capture(Unfollowable(), (torch.randn(2, 6),)).narrow({"a.out": 4})
    assert runs_graph(narrow)


class Refused(nn.Module):
    """Its control flow counts an axis, and the graph cannot stand in, as train mode looks at values."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.a, self.b, self.early = nn.Linear(6, 8), nn.Linear(8, 4), early

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        narrow = x.shape[1] < 8
        if self.early and narrow:
            x = x.relu()
        x = x.sigmoid()
        y = self.b(-x if self.training and x.sum() > 0 else x)
        if narrow:
            y = y.tanh()
        return y


@pytest.mark.filterwarnings("ignore:train mode is taken for")
@pytest.mark.parametrize(("early", "differs"), [(True, "sigmoid"), (False, "tanh")])
def test_a_model_that_cannot_be_cut_is_refused_with_the_line_that_differs(early: bool, differs: str) -> None:
    """Where another operation is expected, and where none is."""
    lines, first = inspect.getsourcelines(Refused)
    number = first + next(i for i, line in enumerate(lines) if differs in line)
    taken = capture(Refused(early), (torch.randn(2, 6),))
    with pytest.raises(UserError, match=rf"test_narrow.py:{number} \(in the model itself\) does not"):
        taken.narrow({"a.out": 4})


def test_a_graph_refuses_sizes_that_the_model_cannot_have() -> None:
    narrow = captured(row_named("flatten cnn, literal size")).narrow({"conv2.out": 6}).to_empty(device="cpu")
    assert runs_graph(narrow)
    assert narrow(torch.randn(5, 3, 16, 16)).shape == (5, 10)
    with pytest.raises(UserError, match=r"size \(2, 3, 16, 16\) that was captured, .* got \(5, 3, 16, 20\)"):
        narrow(torch.randn(5, 3, 16, 20))


class Pooled(nn.Module):
    """Its channels are written out, its heights and widths are free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)).view(-1, 8))


def test_a_graph_is_captured_anew_for_images_of_another_size() -> None:
    narrow = capture(Pooled(), (torch.randn(2, 3, 16, 16),)).narrow({"conv.out": 3}).to_empty(device="cpu")
    assert runs_graph(narrow)
    for parameter in narrow.parameters():
        nn.init.normal_(parameter)
    for size in ((16, 16), (20, 24), (16, 16), (20, 24)):
        x = torch.randn(1, 3, *size)
        for training in (False, True):
            expected = narrow.head(narrow.conv(x).mean((2, 3)))
            torch.testing.assert_close(narrow.train(training)(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_graph_and_own_forward_agree(row: Row) -> None:
    """Two ways to the same sub-model, in eval mode, at another batch size."""
    source = captured(row).source
    widths = halved(row)
    own = filled(row, last_units(row, widths)).eval()
    graph = with_graph_forward(narrow_copy(source.model, source.axes, widths), source.symbolic, widths)
    assert graph is not None
    graph = graph.to_empty(device="cpu").eval()
    graph.load_state_dict(own.state_dict())
    for name, buffer in graph.named_buffers():
        buffer.copy_(dict(own.named_buffers())[name])
    torch.manual_seed(5)
    inputs = row.inputs(3)
    torch.testing.assert_close(run(graph, inputs), run(own, inputs), rtol=1e-5, atol=1e-6)
    assert list(graph.state_dict()) == list(model_of(row).state_dict())


@pytest.mark.parametrize("name", ["flatten cnn, literal size", "nanogpt", "resnext"])
def test_random_numbers_of_others_are_left_alone(name: str) -> None:
    row = row_named(name)
    model, inputs = row.model(), row.inputs(2)
    before = torch.get_rng_state()
    taken = capture(model, *inputs)
    taken.narrow(dict.fromkeys(taken.axes.cuttable, 2))
    permutation_errors(model, *inputs, taken.axes)
    assert torch.equal(torch.get_rng_state(), before)
