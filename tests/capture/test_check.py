"""In which types proofs run, and what they cannot tell."""

import pytest
import torch
from torch import Tensor, nn

from msfusion.capture import TOLERANCE, capture, permutation_errors
from msfusion.capture.check import draws
from msfusion.capture.silence import silence_errors
from msfusion.errors import UserError

INPUTS = (torch.randn(2, 12),)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return self.a(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.hidden(x))
        return out


class InFloat32(Plain):
    def hidden(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return super().hidden(x)


class Mixed(Plain):
    """A frozen layer in bfloat16 beside one in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.a.bfloat16().requires_grad_(False)
        self.beside = nn.Linear(12, 32)

    def hidden(self, x: Tensor) -> Tensor:
        return (self.a(x.bfloat16()).float() + self.beside(x)).relu()


@pytest.mark.parametrize("kind", [InFloat32, Mixed])
def test_a_forward_that_names_types_is_proved(kind: type[Plain]) -> None:
    model = kind()
    taken = capture(model, INPUTS)
    for errors in (permutation_errors(model, INPUTS, {}, taken.axes), silence_errors(model, taken)):
        assert errors.keys() == {"a.out"}
        assert errors["a.out"] < 1e-5


class Nowhere(Plain):
    def hidden(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            raise ValueError("not here")
        return super().hidden(x)


def test_a_forward_that_cannot_run_is_named_in_one_sentence() -> None:
    model = Nowhere()
    axes = capture(model, INPUTS).axes
    with pytest.raises(UserError, match=r"test_check\.py:\d+ ValueError: not here; let it") as caught:
        permutation_errors(model, INPUTS, {}, axes)
    assert "\n" not in str(caught.value)


def test_outputs_that_are_cut_are_wrong() -> None:
    overrides = {
        "a.weight": ["hidden:32", "12"],
        "b.weight": ["classes:3", "hidden:32"],
        "b.bias": ["classes:3"],
    }
    model = Plain()
    taken = capture(model, INPUTS, overrides=overrides)
    assert taken.axes.cuttable == ("hidden", "classes")
    assert silence_errors(model, taken)["classes"] > TOLERANCE
    assert permutation_errors(model, INPUTS, {}, taken.axes)["classes"] > TOLERANCE


class Noise(Plain):
    def hidden(self, x: Tensor) -> Tensor:
        hidden = super().hidden(x)
        return hidden + torch.randn_like(hidden)


def test_noise_in_eval_mode_is_seen() -> None:
    assert draws(Noise(), INPUTS, {})
    assert not draws(Plain(), INPUTS, {})
