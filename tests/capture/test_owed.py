"""Products whose parameter cannot have the factor of the scale rule have it themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import assert_equals_twins, captured
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from zoo import NanoGPT, Row, images, tokens, vectors

from msfusion.capture import capture
from msfusion.capture.graph_module import runs_graph
from msfusion.errors import UserError

VOCABULARY, WIDTH = 24, 16


class Head(nn.Linear):
    """A head as many write one: a class of its own."""


class Language(nn.Module):
    """A table that embeds and, in one way or another, is the head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.table, self.middle = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.head = (Head if how == "subclass" else nn.Linear)(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        h = h + self.out(torch.relu(self.middle(h)))
        match self.how:
            case "functional":
                return F.linear(h, self.table.weight)
            case "matmul":
                return h @ self.table.weight.t()
            case "einsum":
                return torch.einsum("vd,btd->btv", self.table.weight, h)
            case "keyword":
                return self.head(input=h)
            case _:
                return self.head(h)


class Autoencoder(nn.Module):
    """Both ways through one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.3 * torch.randn(16, 12)), nn.Parameter(torch.randn(16))
        self.code = nn.Linear(16, 8)
        self.back = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(F.linear(x, self.weight, self.bias))
        return F.linear(torch.relu(self.back(self.code(h))), self.weight.t())


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inside = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(
            torch.relu(self.inside(torch.relu(self.conv(x)))), self.conv.weight, padding=1
        )


class Latents(nn.Module):
    """Learned rows that enter a product and a sum; two products with parts of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 16))
        self.first, self.mix, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))[:, None] + self.latents + self.latents @ self.mix.weight.t()
        h = torch.relu(h).mean(1)
        return h @ self.head.weight[:, :16].t() + torch.relu(h + 1) @ self.head.weight[:, 16:].t()


class Twice(nn.Module):
    """One product of three, two of which are read elsewhere as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(WIDTH, 8))

    def forward(self, x: Tensor) -> Tensor:
        g = torch.relu(self.table(x) @ self.mix)
        return torch.einsum("vd,de,bte->btv", self.table.weight, self.mix, g)


class Sides(nn.Module):
    """A tied head over two tables side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.first(x), self.second(x)], -1)
        return h @ torch.cat([self.first.weight, self.second.weight], 1).t()


class Stacked(nn.Module):
    """Sums over channels that lie side by side, with what lies inside each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 16, 3)
        self.code, self.head = nn.Linear(24 * 36, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([torch.relu(self.first(x)), torch.tanh(self.second(x))], 1)
        return self.head(torch.relu(self.code(h.flatten(1))))


class Crossed(nn.Module):
    """Square weights over embeddings side by side (DCN-v2), written as a layer and as products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(VOCABULARY, 16), nn.Embedding(VOCABULARY, 8)
        self.cross, self.product = nn.Linear(24, 24), nn.Parameter(0.2 * torch.randn(24, 24))
        self.conv, self.back = nn.Conv1d(24, 24, 1), nn.ConvTranspose1d(24, 24, 1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.cat([self.first(x), self.second(x)], -1)
        h = start + start * self.cross(start)
        h = h + start * (h @ self.product)
        h = h + self.conv(h.transpose(1, 2)).transpose(1, 2)
        h = h + self.back(torch.tanh(h).transpose(1, 2)).transpose(1, 2)
        return self.head(torch.relu(h))


class Pairs(nn.Module):
    """Weights that sum over pairs of units of one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pairs = nn.Linear(6, 8), nn.Bilinear(8, 8, 12)
        self.cube, self.flat = nn.Parameter(torch.randn(8, 12, 12)), nn.Parameter(torch.randn(4, 64))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.pairs(h, h))
        h = torch.tanh(torch.einsum("bi,oij,bj->bo", h, self.cube, h))
        return torch.einsum("bi,oij,bj->bo", h, self.flat.view(4, 8, 8), h)


class Signs(nn.Module):
    """A fixed projection whose entries are integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 12), nn.Linear(16, 4)
        self.register_buffer("signs", (2 * torch.randint(0, 2, (12, 16)) - 1).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.head(torch.tanh(h @ self.signs.float()))


class Standardised(nn.Conv2d):
    """Of norm-free ResNets."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(x, (self.weight - mean) * torch.rsqrt(variance + 1e-12), self.bias)


class Batched(nn.Conv2d):
    """The same as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        return self._conv_forward(
            x, F.batch_norm(flat, None, None, training=True).reshape_as(self.weight), self.bias
        )


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class LowRank(nn.Module):
    """A weight and what adapts it, of low rank."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.down, self.up = nn.Parameter(torch.randn(4, inputs)), nn.Parameter(torch.randn(outputs, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.up @ self.down)


class Greatest(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.norm(p=torch.inf, dim=1, keepdim=True), self.bias)


class Stream(nn.Module):
    """Both dimensions of its weight are the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.inside = weight_norm(nn.Linear(16, 16), dim=None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + torch.relu(self.inside(h)))


class Gated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ (torch.sigmoid(self.weight) * self.weight.abs().amax(1, keepdim=True)).t() + self.bias


def convolutional(layer: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        layer(3, 8), nn.ReLU(), layer(8, 12), nn.ReLU(), layer(12, 8), nn.Flatten(), nn.Linear(512, 5)
    )


def perceptron(layer: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(layer(6, 8), nn.ReLU(), layer(8, 12), nn.ReLU(), layer(12, 4))


CONVOLUTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "standardised": lambda a, b: Standardised(a, b, 3, padding=1),
    "batched": lambda a, b: Batched(a, b, 3, padding=1),
    "weight norm": lambda a, b: weight_norm(nn.Conv2d(a, b, 3, padding=1)),
    "weight norm of all": lambda a, b: weight_norm(nn.Conv2d(a, b, 3, padding=1), dim=None),
    "weight norm, transposed": lambda a, b: weight_norm(nn.ConvTranspose2d(a, b, 3, padding=1)),
}
LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "weight norm": lambda a, b: weight_norm(nn.Linear(a, b)),
    "cosine": Cosine,
    "low rank": LowRank,
    "gated": Gated,
    "greatest": Greatest,
}
COMPUTED = [
    *(
        Row(f"convolutions, {n}", partial(convolutional, own), images(8), 0)
        for n, own in CONVOLUTIONS.items()
    ),
    *(Row(f"layers, {n}", partial(perceptron, own), vectors(6), 0) for n, own in LAYERS.items()),
    Row("layers, weight norm of a stream", Stream, vectors(6), 0),
]


WAYS = ("linear", "subclass", "functional", "matmul", "einsum", "keyword")
TEXT = [Row(how, partial(Language, how), tokens(VOCABULARY), 0) for how in WAYS]
OTHERS = [
    Row("autoencoder", Autoencoder, vectors(12), 0),
    Row("convolutions", Convolutional, images(8), 0),
    Row("latents", Latents, vectors(6), 0),
    Row("twice in one product", Twice, tokens(VOCABULARY), 0),
    Row("side by side with places inside", Stacked, images(8), 0),
    Row("square over parts side by side", Crossed, tokens(VOCABULARY), 0),
    Row("pairs", Pairs, vectors(6), 0),
    Row("integers", Signs, vectors(6), 0, tolerance=1e-4),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in [*TEXT, *OTHERS, *COMPUTED]])
def test_a_window_over_twins_is_the_full_model_however_weights_are_shared(row: Row) -> None:
    assert captured(row).axes.cuttable
    assert_equals_twins(row, ())
    assert_equals_twins(row, (), unequal=True)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in TEXT])
def test_the_own_forward_is_kept_where_a_linear_layer_can_scale_its_inputs(row: Row) -> None:
    taken = captured(row)
    widths = {axis: taken.axes.axes[axis].size // 2 for axis in taken.axes.cuttable}
    assert not runs_graph(taken.narrow(widths))
    assert runs_graph(taken.narrow(widths, scaled=True)) == (row.name not in ("linear", "keyword"))


@pytest.mark.parametrize(("stream", "heads"), [(16, 1), (8, 2)])
def test_the_captured_graph_scales_too(stream: int, heads: int) -> None:
    """nanoGPT divides its stream's width by its heads, so the graph stands in where these two differ."""
    row = Row("nanogpt, two widths", partial(NanoGPT, layers=1), tokens(), 0)
    taken = captured(row)
    (head,) = [
        axis for axis, info in taken.axes.axes.items() if axis in taken.axes.cuttable and info.size == 4
    ]
    narrow = taken.narrow({"wte.out": stream, head: heads}, scaled=True)
    assert runs_graph(narrow)
    assert_equals_twins(row, (), unequal=True)


def test_parts_side_by_side_that_no_number_can_scale_stay_whole() -> None:
    axes = capture(Sides(), *tokens(VOCABULARY)(2)).axes
    assert all(info.whole for info in axes.axes.values())


class Counted(Autoencoder):
    """Its batch is a number in the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(len(x), -1))


def test_a_graph_whose_batch_is_a_number_is_captured_anew() -> None:
    taken = capture(Counted(), (torch.randn(2, 3, 4),))
    (axis,) = [axis for axis in taken.axes.cuttable if taken.axes.axes[axis].size == 16]
    narrow = taken.narrow({axis: 8}, scaled=True).to_empty(device="cpu")
    assert runs_graph(narrow)
    for batch in (2, 5, 1, 5):
        assert narrow(torch.randn(batch, 3, 4)).shape == (batch, 12)


class Looking(Language):
    """Its train mode looks at values, so that no graph can stand in."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return 2 * out if self.training and out.sum() > 0 else out


@pytest.mark.filterwarnings("ignore:train mode is taken for")
def test_what_can_be_scaled_nowhere_is_refused() -> None:
    taken = capture(Looking("matmul"), *tokens(VOCABULARY)(2))
    with pytest.raises(
        UserError, match=r"weights are read in one way.*test_owed\.py:\d+ \(in the model itself\)"
    ):
        taken.narrow({"table.out": 8}, scaled=True)
    taken.narrow({"table.out": 8})


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in COMPUTED])
def test_layers_of_pytorch_keep_their_own_forward_under_weight_norm(row: Row) -> None:
    taken = captured(row)
    widths = {axis: taken.axes.axes[axis].size // 2 for axis in taken.axes.cuttable}
    assert len(widths) >= (3 if row.name.startswith("convolutions") else 1)
    assert runs_graph(taken.narrow(widths, scaled=True)) == ("weight norm" not in row.name)


class Clamped(nn.Linear):
    """Rows no longer than a number."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True).clamp_min(3.5), self.bias)


class Mixing(nn.Linear):
    """Outputs share what an input gives."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.softmax(self.weight, 0), self.bias)


class Halves(nn.Module):
    """One norm over rows whose halves are two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.both = weight_norm(nn.Linear(6, 16), dim=None)
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).chunk(2, -1)
        return self.first(torch.relu(left)) + self.second(torch.tanh(right))


def test_what_is_computed_in_a_way_that_is_not_known_is_not_cut() -> None:
    axes = capture(perceptron(Clamped), *vectors(6)(2)).axes
    assert {info.whole for info in axes.axes.values()} == {"summed over where no parameter makes up for it"}


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (lambda: Halves(), vectors(6)),
        (lambda: perceptron(lambda a, b: spectral_norm(nn.Linear(a, b))), vectors(6)),
        (lambda: convolutional(lambda a, b: spectral_norm(nn.Conv2d(a, b, 3, padding=1))), images(8)),
        (lambda: perceptron(Mixing), vectors(6)),
    ],
)
def test_no_axis_of_a_weight_is_cut_of_which_no_power_is_known(
    model: Callable[[], nn.Module], inputs: Callable[[int], Any]
) -> None:
    taken = capture(model(), *inputs(2))
    assert not taken.axes.cuttable
    assert not taken.source.derived.owed or all(one.factor({}) == 1 for one in taken.source.derived.owed)


class Recurrent(nn.Module):
    """Its weights lose some of their entries at random (AWD-LSTM)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        cell = self.cell
        weights = cell.weight_ih, cell.weight_hh * 0.5, cell.bias_ih, cell.bias_hh
        return self.head(torch.gru_cell(x, x.new_zeros(len(x), 8), *weights))


def test_a_product_of_which_nothing_can_be_multiplied_is_not_cut() -> None:
    assert not capture(Recurrent(), *vectors(6)(2)).axes.cuttable
