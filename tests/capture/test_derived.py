"""What the map of small models says, by hand: granularity, sums, ties, streams, names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import CharLSTM, FusedQKV, LlamaLike, NanoGPT, SqueezeExcite, UNet, images, tokens, vectors

from msfusion.capture import capture, permutation_errors
from msfusion.core.axes import Axis
from msfusion.core.scale import factors, fan_in


def test_one_hidden_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    axes = capture(model, (torch.randn(4, 3),)).axes
    assert {n: [str(d) for d in dims] for n, dims in axes.tensors.items()} == {
        "0.weight": ["0.out:5", "3"],
        "0.bias": ["0.out:5"],
        "2.weight": ["2", "0.out:5"],
        "2.bias": ["2"],
    }
    assert axes.summed == {"2.weight": {1: Axis("0.out", 5)}}
    assert axes.pinned["0.weight:1"] == "input of the model"


def test_attention_is_cut_by_whole_heads() -> None:
    axes = capture(NanoGPT(layers=1), *tokens()(2)).axes
    qkv = axes.tensors["h.0.attn.c_attn.weight"]
    a, b, c = (f"h.0.attn.c_attn.out{s}" for s in ("", "~2", "~3"))
    assert str(qkv[0]) == f"{a}:4*{b}:8 + {a}:4*{b}:8 + {a}:4*{c}:8"
    assert axes.axes[a].whole is None
    assert axes.axes[b].whole == f"lies inside each unit of {a}"


@pytest.mark.parametrize(
    ("order", "dim"),
    [
        ("3HD", "3*qkv.out:4*8"),
        ("H3D", "qkv.out:4*3*8"),
    ],
)
def test_fused_projections_follow_their_view(order: str, dim: str) -> None:
    axes = capture(FusedQKV(order), *vectors(5, 12)(2)).axes
    assert str(axes.tensors["qkv.bias"][0]).replace("*qkv.out~2:8", "*8") == dim


def test_query_heads_move_with_their_key_value_head_and_rotary_pairs_with_their_frequency() -> None:
    axes = capture(LlamaLike(), *tokens()(2)).axes
    q, k = axes.tensors["blocks.0.attention.q.weight"][0], axes.tensors["blocks.0.attention.k.weight"][0]
    base = "blocks.0.attention.q.out"
    assert str(q) == f"{base}:2*{base}~2:2*(inv_freq:4 + inv_freq:4)".replace("inv_freq", f"{base}~3")
    assert str(k) == f"{base}:2*({base}~3:4 + {base}~3:4)"
    assert [str(d) for d in axes.tensors["inv_freq"]] == [f"{base}~3:4"]
    assert axes.axes[f"{base}~3"].whole is not None


def test_skip_connections_are_concatenations_and_group_norm_cuts_by_groups() -> None:
    axes = capture(UNet(), *images()(2)).axes
    assert str(axes.tensors["join1.0.weight"][1]) == "up1.out:8 + down1.3.out:4*down1.3.out~2:2"
    assert axes.axes["down1.3.out~2"].whole == "lies inside each unit of down1.3.out"


def test_gates_are_segments_of_the_hidden_units() -> None:
    axes = capture(CharLSTM(), *tokens()(2)).axes
    (hidden,) = {str(d).split("*")[1] for d in axes.tensors["lstm.bias_ih_l1"]}
    assert str(axes.tensors["lstm.bias_ih_l1"][0]) == f"4*{hidden}"
    assert {i: str(dim) for i, dim in axes.summed["lstm.weight_hh_l1"].items()} == {1: hidden}


def test_ties_are_kept_once_and_not_summed_where_they_also_embed() -> None:
    axes = capture(NanoGPT(layers=1), *tokens()(2)).axes
    assert axes.ties == {"lm_head.weight": "wte.weight"}
    assert "lm_head.weight" not in axes.tensors
    assert "wte.weight" not in axes.summed
    assert axes.summed_axes("h.0.mlp.0.weight") == {"wte.out"}


class Sums(nn.Module):
    """Parameters that are summed over in all the ways that there are, or are not."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.turned = nn.Parameter(torch.randn(10, 8))
        self.cube = nn.Parameter(torch.randn(10, 4, 3))
        self.scale = nn.Parameter(torch.randn(12))
        self.both = nn.Parameter(torch.randn(12, 12))
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x)) @ self.matrix
        x = torch.relu(x) @ self.turned.t()
        x = torch.einsum("bi,ijk->bjk", x, self.cube).flatten(1) * self.scale
        return self.out(x @ self.both + x @ self.both.t())


def test_sums_through_transposes_and_einsum() -> None:
    axes = capture(Sums(), (torch.randn(3, 6),)).axes
    assert axes.summed_axes("matrix") == {"matrix.in"}
    assert axes.summed_axes("turned") == {"matrix.out"}
    assert axes.summed_axes("cube") == {"turned.out"}
    assert "scale" not in axes.summed
    assert "enter.weight" not in axes.summed


class SideBySide(nn.Module):
    """Sums whose inputs, or outputs, are made of several parts; one over the axis that its outputs lie on."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.other = nn.Linear(6, 16), nn.Linear(6, 16)
        self.join, self.gate = nn.Linear(32, 16), nn.Linear(16, 32)
        self.cell = nn.GRUCell(16, 16)
        self.up, self.out = nn.ConvTranspose1d(16, 8, 3, groups=4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(torch.cat([torch.relu(self.enter(x)), torch.tanh(self.other(x))], 1))
        value, gate = self.gate(x).chunk(2, 1)
        x = x + value * torch.sigmoid(gate)
        x = self.cell(x, torch.tanh(x))
        return self.out(self.up(x[:, :, None]).mean(2))


def test_what_is_summed_over_is_told_from_what_it_gives() -> None:
    axes = capture(SideBySide(), (torch.randn(3, 6),)).axes
    assert fan_in(axes, {}) == {
        "join.weight": 32,
        "gate.weight": 16,
        "cell.weight_ih": 16,
        "cell.weight_hh": 16,
        "up.weight": 4,
        "out.weight": 8,
    }
    halves = {axis: axes.axes[axis].size // 2 for axis in axes.cuttable}
    assert factors(axes, halves)["join.weight"] == 2.0
    assert set(factors(axes, halves).values()) == {2.0}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.depth = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3, groups=8)
        self.up, self.out = nn.ConvTranspose1d(8, 6, 3), nn.Conv1d(6, 2, 1)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.norm(self.depth(self.enter(x)))))


def test_convolutions_sum_over_their_inputs_but_not_depthwise() -> None:
    axes = capture(Convolutions(), (torch.randn(3, 3, 9),)).axes
    assert axes.summed == {"up.weight": {0: Axis("enter.out", 8)}, "out.weight": {1: Axis("up.out", 6)}}
    assert [str(d) for d in axes.tensors["depth.weight"]] == ["enter.out:8", "1", "3"]
    assert [str(d) for d in axes.tensors["norm.running_var"]] == ["enter.out:8"]


class Scattered(nn.Module):
    """Writes to places: rows by index, rows by mask, sums of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.token, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(8)), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        h = self.a(x)
        h = h.masked_fill(mask[..., None], 0.0)
        h = torch.index_put(h, (mask,), self.token)
        h = torch.index_put(h, (rows, rows), torch.relu(h[rows, rows]))
        h = torch.index_put(h, (rows,), self.token[None].expand(5, 8))
        turned = h.transpose(1, 2).clone()
        turned[:, :, rows] = torch.tanh(h[:, rows]).transpose(1, 2)
        h = turned.transpose(1, 2)
        return self.out(torch.zeros_like(h).index_add(1, rows, h[:, rows]))


def test_writing_to_places_pins_the_places_only() -> None:
    inputs = (torch.randn(4, 5, 6), torch.rand(4, 5) > 0.5, torch.tensor([0, 2, 1]))
    model = Scattered()
    axes = capture(model, inputs).axes
    assert axes.cuttable == ("token",)
    assert not axes.unknown
    assert permutation_errors(model, inputs, {}, axes)["token"] < 1e-10


class Excited(nn.Module):
    """Squeeze-and-excite closes a cycle, too, but it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.excite, self.out = nn.Conv2d(3, 16, 3), SqueezeExcite(16, 4), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.excite(F.relu(self.enter(x))))


def test_squeeze_and_excite_is_no_residual_stream() -> None:
    axes = capture(Excited(), *images()(2)).axes
    assert set(axes.cuttable) == {"enter.out", "excite.down.out"}
    assert not any(info.residual for info in axes.axes.values())


class Projected(nn.Module):
    """Embeddings of another width than the stream, tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.enter = nn.Embedding(20, 6), nn.Linear(6, 8)
        self.up, self.down, self.leave = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(self.tokens(x))
        h = h + self.down(self.up(h).relu())
        return self.leave(h) @ self.tokens.weight.t()


def test_the_stream_is_the_first_axis_that_is_added_along() -> None:
    axes = capture(Projected(), *tokens(20)(2)).axes
    assert [name for name, info in axes.axes.items() if info.residual] == ["enter.out"]


def test_the_map_is_deterministic() -> None:
    first, second = (capture(LlamaLike(), *tokens()(2)).axes.to_json() for _ in range(2))
    assert first == second


def test_sizes_that_coincide_do_not_confuse() -> None:
    """Vocabulary = embedding, batch = length = heads = head size."""
    torch.manual_seed(0)
    model = NanoGPT(16, 16, 4, 1)
    axes = capture(model, (torch.randint(0, 16, (4, 4)),)).axes
    assert axes.to_json() == capture(model, (torch.randint(0, 16, (3, 7)),)).axes.to_json()


class Computes(nn.Module):
    """A forward that is given."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._forward(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


LOW_RANK = {"a": parameter(6, 8), "b": parameter(8, 3)}


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x @ (self.a @ self.b),
        lambda self, x: torch.einsum("bi,ir,ro->bo", x, self.a, self.b),
    ],
)
def test_of_two_parameters_that_meet_one_is_scaled(forward: Callable[..., Tensor]) -> None:
    axes = capture(Computes(forward, **LOW_RANK), (torch.randn(5, 6),)).axes
    assert factors(axes, {"a.in": 4}) == {"a": 2.0}


@pytest.mark.parametrize(
    ("forward", "parts"),
    [
        (lambda self, x: (self.a(x) * self.b(x)).sum(-1), {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8)}),
        (lambda self, x: torch.logsumexp(self.a(x), 1), {"a": nn.Linear(6, 8)}),
        (lambda self, x: torch.softmax(self.a(x), 1) @ self.b, {"a": nn.Linear(6, 8), "b": parameter(8, 3)}),
        (
            lambda self, x: F.linear(self.a(x), self.b + self.b.sum(1, keepdim=True)),
            {"a": nn.Linear(6, 8), "b": parameter(3, 8)},
        ),
        (
            lambda self, x: torch.einsum("bi,bi->b", self.a(x), self.b(x)),
            {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8)},
        ),
    ],
)
def test_where_no_parameter_makes_up_for_a_narrower_sum_nothing_is_cut(
    forward: Callable[..., Tensor], parts: dict[str, Any]
) -> None:
    axes = capture(Computes(forward, **parts), (torch.randn(5, 6),)).axes
    assert {info.whole for info in axes.axes.values()} == {"summed over where no parameter makes up for it"}


MADE = {"enter": nn.Linear(6, 8), "make": nn.Linear(6, 32)}
CELL = {"enter": nn.Linear(6, 8), "a": nn.Linear(6, 48), "b": nn.Linear(6, 8), "out": nn.Linear(8, 4)}


@pytest.mark.parametrize(
    ("forward", "parts"),
    [
        (lambda self, x: F.linear(self.enter(x), self.make(x).mean(0).view(4, 8)), MADE),
        (lambda self, x: F.conv1d(self.enter(x)[..., None], self.make(x).mean(0).view(4, 8, 1)), MADE),
        (
            lambda self, x: F.conv_transpose1d(self.enter(x)[..., None], self.make(x).mean(0).view(8, 4, 1)),
            MADE,
        ),
        (
            lambda self, x: F.conv1d(
                self.enter(x).view(1, -1, 1), self.make(x).view(-1, 8, 1), groups=len(x)
            ),
            MADE,
        ),
        (
            lambda self, x: self.out(
                torch.rnn_tanh_cell(
                    x, self.enter(x), self.a(x).mean(0).view(8, 6), self.b(x).mean(0)[:, None] * self.b(x)[0]
                )
            ),
            CELL,
        ),
    ],
)
def test_what_is_multiplied_by_weights_that_the_forward_computes_stays_whole(
    forward: Callable[..., Tensor], parts: dict[str, Any]
) -> None:
    axes = capture(Computes(forward, **parts), (torch.randn(5, 6),)).axes
    assert axes.axes["enter.out"].whole == "summed over where no parameter makes up for it"
    assert not axes.cuttable


def test_places_that_are_read_from_a_grid_are_no_axis() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        theta = self.b(torch.relu(self.a(x.flatten(1)))).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).flatten(1)

    model = Computes(forward, a=nn.Linear(48, 8), b=nn.Linear(8, 6))
    assert capture(model, (torch.randn(2, 3, 4, 4),)).axes.cuttable == ("a.out",)


def test_a_table_that_embeds_and_is_the_head_has_the_inputs_of_the_head_scaled() -> None:
    taken = capture(NanoGPT(layers=1), *tokens()(2))
    found = taken.source.derived.owed
    assert {(owed.module, *map(str, owed.dims)) for owed in found} == {("lm_head", "wte.out:32")}
    assert {owed.factor({"wte.out": 8}) for owed in found} == {4.0}
    assert "lm_head.weight" not in factors(taken.axes, {"wte.out": 8})
