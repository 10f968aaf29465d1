"""Models as they are written in practice: states that are learned, bags of tokens, draws, padding."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msfusion.capture import capture, permutation_errors
from msfusion.capture.silence import silence_errors
from msfusion.core.axes import Fixed


class Recurrent(nn.Module):
    """Two layers that begin with states of their own."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers, self.head = kind(6, 8, 2, batch_first=True), nn.Linear(8, 3)
        self.state = nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        state = self.state[:, None].expand(-1, x.shape[0], -1).contiguous()
        given = (state, torch.zeros_like(state)) if isinstance(self.layers, nn.LSTM) else state
        out: Tensor = self.head(self.layers(x, given)[0][:, -1])
        return out


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)
        self.register_buffer("padding", torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x, src_key_padding_mask=self.padding))
        return out


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)).to(torch.complex64))
        return out


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_learned_first_state_has_no_axis_of_layers(kind: type[nn.RNNBase]) -> None:
    model, x = Recurrent(kind), (torch.randn(2, 5, 6),)
    taken = capture(model, x)
    assert [taken.axes.axes[axis].size for axis in taken.axes.cuttable] == [8]
    assert max(permutation_errors(model, x, {}, taken.axes).values()) < 1e-10
    narrow = taken.narrow(dict.fromkeys(taken.axes.cuttable, 4)).to_empty(device="cpu")
    assert narrow(*x).shape == (2, 3)
    assert narrow.state.shape == (2, 4)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_of_embeddings_is_cut_by_columns(mode: str) -> None:
    model = nn.Sequential(nn.EmbeddingBag(20, 16, mode=mode), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    x = (torch.randint(20, (2, 5)),)
    taken = capture(model, x)
    assert taken.axes.cuttable == ("0.out", "1.out")
    assert max(permutation_errors(model, x, {}, taken.axes).values()) < 1e-10
    assert taken.narrow({"0.out": 4, "1.out": 3}).to_empty(device="cpu")(*x).shape == (2, 3)


class Drawing(nn.Module):
    """Draws in evaluation mode too, as a variational autoencoder often does."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.decode = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(torch.relu(self.encode(x)))
        return self.decode(mean + F.dropout(torch.ones_like(mean), 0.5))


def test_a_model_that_draws_is_proved() -> None:
    model, x = Drawing(), (torch.randn(3, 6),)
    axes = capture(model, x).axes
    errors = permutation_errors(model, x, {}, axes)
    assert errors["encode.out"] < 1e-10


def test_a_padded_encoder_is_proved() -> None:
    model = Padded().eval()
    taken = capture(model, (torch.randn(2, 5, 16),))
    assert max(silence_errors(model, taken).values()) < 1e-10


def test_complex_outputs_count_in_the_proof() -> None:
    model, x = Complex(), (torch.randn(3, 6),)
    axes = capture(model, x).axes
    assert permutation_errors(model, x, {}, axes)["first.out"] < 1e-5
    wrong = replace(axes, tensors={**axes.tensors, "first.bias": (Fixed(8),)})
    assert permutation_errors(model, x, {}, wrong)["first.out"] > 1e-3
