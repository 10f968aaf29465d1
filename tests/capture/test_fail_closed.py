"""What is not known is not cut: operations without a rule, rules that are taken away, odd forwards."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from odd import Mysterious
from torch import Tensor, nn
from zoo import ROWS, Row

import msfusion
from msfusion.capture import TOLERANCE, capture, permutation_errors
from msfusion.capture.derive import derive
from msfusion.capture.modes import capture_modes
from msfusion.capture.rules import registry
from msfusion.core.axes import AxisMap, axes_of
from msfusion.errors import UserError


def test_an_unknown_operation_pins_what_it_touches_and_is_named() -> None:
    axes = capture(Mysterious(), (torch.randn(3, 8),)).axes
    assert axes.cuttable == ("b.out",)
    assert axes.unknown == {"msfusion_test.mystery.default": 1}
    assert "mystery" in axes.pinned["a.weight:0"]


class Used(nn.Module):
    """Tensors that the forward reads in part, not at all, or by position."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Parameter(torch.randn(32, 16)), nn.Linear(16, 16)
        self.unused, self.out = nn.Linear(16, 16), nn.Linear(16, 4)
        self.constant = torch.randn(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.table[: x.shape[1]] + x[..., None])
        return self.out(x * self.constant)


def test_reasons_for_what_is_pinned() -> None:
    axes = capture(Used(), (torch.randn(3, 5),)).axes
    assert axes.cuttable == ("table.out",)
    assert axes.pinned["table:0"] == "input of the model"
    assert axes.pinned["linear.weight:0"] == "constant of the model"
    assert axes.pinned["unused.weight:0"] == "not used by the traced forward"
    assert axes.pinned["out.weight:0"] == "output of the model"


class Auxiliary(nn.Module):
    """A head for training only, as GoogLeNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.head, self.hidden = nn.Linear(10, 4), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x) + self.head(self.hidden(x)) if self.training else self.b(x)


def test_parameters_of_train_mode_alone_are_cut_along() -> None:
    captured = capture(Auxiliary(), (torch.randn(3, 8),))
    assert captured.axes.cuttable == ("a.out", "head.in")
    assert [str(d) for d in captured.axes.tensors["hidden.weight"]] == ["head.in:10", "a.out:16"]
    narrow = captured.narrow({"a.out": 5, "head.in": 3}).to_empty(device="cpu")
    for training in (True, False):
        assert narrow.train(training)(torch.randn(4, 8)).shape == (4, 4)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.mean() > 0 else self.a(-x)


def test_a_forward_that_depends_on_values_is_refused_in_one_sentence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    message = (
        r"torch\.export can capture with example inputs of 3x8 \(float32\), "
        r".*test_fail_closed\.py:\d+ .*change that line"
    )
    with pytest.raises(UserError, match=message) as caught:
        capture(Branch(), (torch.randn(3, 8),))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out: Tensor = self.b(x[x[:, 0] > 0])
        return out


def test_sizes_that_depend_on_values_are_refused_with_their_line() -> None:
    message = r"got at .*test_fail_closed\.py:\d+ one that depends on values, .* torch\.where"
    with pytest.raises(UserError, match=message) as caught:
        capture(Masked(), (torch.randn(3, 8),))
    assert "\n" not in str(caught.value)


@dataclass
class Unknown:
    logits: Tensor


class DynamicCache(Unknown):
    """Called as the one of transformers."""


@pytest.mark.parametrize(
    ("kind", "what"),
    [(Unknown, "return one of these"), (DynamicCache, r"set model\.config\.use_cache = False")],
)
def test_outputs_of_unknown_types_are_refused(kind: type[Unknown], what: str) -> None:
    class Returning(Masked):
        def forward(self, x: Tensor) -> Any:
            return kind(self.b(self.a(x)))

    with pytest.raises(UserError, match=f"ModelOutputs of them, got {kind.__name__}; {what}$"):
        capture(Returning(), (torch.randn(3, 8),))


def test_no_line_is_named_where_the_model_has_none() -> None:
    with pytest.raises(UserError, match="got at a line of PyTorch's own modules RuntimeError"):
        capture(nn.Sequential(nn.Linear(8, 4)), (torch.randn(3, 7),))


class Logits(nn.Module):
    """Returns a mapping of which the default loss reads the logits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.a(x).relu()
        return {"logits": self.b(hidden), "hidden": hidden}


def test_of_a_mapping_the_logits_alone_are_the_output_where_the_loss_is_known_to_read_no_more() -> None:
    model, inputs = Logits(), (torch.randn(3, 8),)
    axes = capture(model, inputs, logits_alone=True).axes
    assert axes.cuttable == ("a.out",)
    assert permutation_errors(model, inputs, {}, axes, logits_alone=True)["a.out"] < 1e-9
    assert permutation_errors(model, inputs, {}, axes)["a.out"] > TOLERANCE
    assert capture(model, inputs).axes.cuttable == ()
    assert msfusion.axes(model, inputs).pinned["a.weight:0"] == "output of the model"
    assert msfusion.axes(model, inputs, logits_alone=True) == axes


def share_cut(axes: AxisMap) -> int:
    return sum(any(axes_of(dim) for dim in dims) for dims in axes.tensors.values())


ABLATED = [
    row for row in ROWS if row.name in ("nanogpt", "unet", "llama-like", "mobilenet", "einsum attention")
]


ABLATED_RULES = (
    "linear",
    "conv2d",
    "layer_norm",
    "view",
    "matmul",
    "softmax",
    "split",
    "einsum",
    "cat",
    "pointwise",
)


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ABLATED])
def test_without_any_one_rule_the_map_may_lose_axes_but_stays_right(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, inputs = row.model(), row.inputs(2)
    graphs, used = capture_modes(model, *inputs), set()

    def noted(name: str) -> registry.Rule:
        plain = registry._RULES[name]

        def rule(call: Any) -> Any:
            used.add(name)
            return plain(call)

        return rule

    with monkeypatch.context() as patch:
        for name in ABLATED_RULES:
            patch.setitem(registry._RULES, name, noted(name))
        whole = share_cut(derive(model, graphs).axes)
    assert len(used) >= 3
    shares = []
    for name in sorted(used):  # the others say nothing about this model
        with monkeypatch.context() as patch:
            patch.setitem(registry._RULES, name, lambda call: None)
            axes = derive(model, graphs).axes
        shares.append(share_cut(axes))
        errors = permutation_errors(model, *inputs, axes)
        assert max(errors.values(), default=0) < 1e-9, name
    assert min(shares) < whole
    assert max(shares) <= whole


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 4)), "lazy 0.weight"),
        (nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Linear(8, 4)), "Embedding 0 with sparse"),
    ],
)
def test_modules_without_sizes_or_dense_gradients_are_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=words):
        capture(model, (torch.zeros(2, 8, dtype=torch.int64),))


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_of_parameters_are_refused(kind: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    hook = getattr(model[1].weight, kind)(lambda _: None)
    with pytest.raises(UserError, match=r"hooks on their gradients, .* got one on 1\.weight"):
        capture(model, (torch.randn(2, 8),))
    hook.remove()
    assert capture(model, (torch.randn(2, 8),)).axes.cuttable


class Written(nn.Module):
    """A size written out, so that the captured graph stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).view(-1, 6))
        return out


@pytest.mark.parametrize(("part", "where"), [("", "the model itself"), ("a", "a")])
def test_effects_of_forward_hooks_on_tensors_count_once_in_a_graph(part: str, where: str) -> None:
    plain, model, x = Written(), Written(), torch.ones(2, 8)
    model.get_submodule(part).register_forward_hook(lambda module, given, out: 3 * out)
    with pytest.warns(UserWarning, match=f"hooks of {where} do not run"):
        narrow = capture(model, (x,)).narrow({"a.out": 3}).to_empty(device="cpu")
    for module in (narrow, plain):
        for parameter in module.parameters():
            nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.ones_(parameter)
    assert torch.equal(narrow(x), 3 * plain(x) / 2)  # half the units, and no bias


def test_hooks_on_gradients_of_modules_are_refused_where_a_graph_stands_in() -> None:
    model = Written()
    model.a.register_full_backward_hook(lambda module, inner, outer: None)
    with pytest.raises(UserError, match="as a has hooks on gradients"):
        capture(model, (torch.ones(2, 8),)).narrow({"a.out": 3})


def test_a_sparse_table_that_is_frozen_has_no_gradients() -> None:
    table = nn.Embedding.from_pretrained(torch.randn(9, 8), sparse=True)
    assert capture(
        nn.Sequential(table, nn.Linear(8, 6), nn.Linear(6, 4)), (torch.zeros(2, 3).long(),)
    ).axes.cuttable
