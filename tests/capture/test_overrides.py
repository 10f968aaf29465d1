"""Dims declared by hand."""

import pytest
import torch
from odd import Mysterious, OrderedHidden
from torch import nn
from zoo import NanoGPT, tokens

from msfusion.capture import TOLERANCE, capture, permutation_errors
from msfusion.errors import UserError

X = torch.randn(3, 8)
HIDDEN = {"a.weight": ["h:16", "8"], "a.bias": ["h:16"], "b.weight": ["b:12", "h:16"]}


def test_a_declared_axis_passes_an_unknown_operation() -> None:
    model = Mysterious()
    captured = capture(model, (X,), overrides=HIDDEN)
    assert captured.axes.cuttable == ("h", "b")
    assert max(permutation_errors(model, (X,), {}, captured.axes).values()) < 1e-10
    narrow = captured.narrow({"h": 8}).to_empty(device="cpu")
    assert narrow.a.out_features == 8
    assert narrow(X).shape == (3, 4)


def test_a_wrong_declaration_fails_the_proof() -> None:
    model = OrderedHidden()
    assert capture(model, (X,)).axes.cuttable == ()
    declared = {"a.weight": ["h:16", "8"], "a.bias": ["h:16"], "b.weight": ["4", "h:16"]}
    axes = capture(model, (X,), overrides=declared).axes
    assert axes.cuttable == ("h",)
    assert permutation_errors(model, (X,), {}, axes)["h"] > TOLERANCE


def test_a_declaration_names_and_coarsens() -> None:
    """Pairs of heads as units, the same in every layer's pattern, and the feed-forward layer whole."""
    captured = capture(
        NanoGPT(layers=2),
        *tokens()(2),
        overrides={
            "h.*.attn.c_proj.weight": ["stream:32", "layer{}.pairs:2*16"],
            "h.*.mlp.0.bias": ["128"],
        },
    )
    axes = captured.axes
    assert axes.cuttable == ("stream", "layer0.pairs", "layer1.pairs")
    assert axes.axes["stream"].residual
    assert str(axes.tensors["h.1.attn.c_attn.bias"][0]).count("layer1.pairs:2*") == 3
    assert axes.pinned["h.0.mlp.0.weight:0"] == "declared whole"
    narrow = captured.narrow({"layer0.pairs": 1, "layer1.pairs": 1})
    assert tuple(narrow.h[0].attn.c_attn.weight.shape) == (48, 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"c.*.weight": ["4"]}, "match a parameter or buffer"),
        ({"a.bias": ["h:8"]}, r"shape \(16,\), got h:8 \(8\)"),
        ({"a.bias": ["h:16*"]}, "dims such as"),
        ({"a.bias": ["h:16", "1"]}, "one dim per dimension"),
        ({"a.bias": ["h:16"], "b.bias": ["h:12"]}, "one size of axis h"),
    ],
)
def test_declarations_that_do_not_fit(overrides: dict[str, list[str]], message: str) -> None:
    model: nn.Module = Mysterious()
    with pytest.raises(UserError, match=message):
        capture(model, (X,), overrides=overrides)


@pytest.mark.parametrize(("transposed", "place"), [(True, 1), (False, 0)])
def test_an_axis_declared_in_both_dimensions_is_summed_over_in_one(transposed: bool, place: int) -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)
            self.mix = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            return self.last(h + h @ (self.mix.t() if transposed else self.mix))

    axes = capture(Square(), (X,), overrides={"mix": ["h:16", "h:16"]}).axes
    assert {i: str(dim) for i, dim in axes.summed["mix"].items()} == {place: "h:16"}
