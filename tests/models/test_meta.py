"""Models without values: no parameter is allocated, buffers and ties are as ever."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from msfusion.capture import capture
from msfusion.models import MODELS, build, build_without_values, parameters_on_meta
from msfusion.models.meta import without_values


@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_has_the_same_axes_without_values(name: str) -> None:
    module, example = build_without_values(name, None)
    assert all(p.is_meta for p in module.parameters())
    real, _ = build(name, None)
    assert capture(module, example).axes == capture(real, example).axes
    buffers = dict(real.named_buffers())
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in module.named_buffers())


def test_layers_that_keep_their_parameters_in_ways_of_their_own() -> None:
    with parameters_on_meta():
        assert without_values()
        tied = nn.Linear(4, 4, bias=False)
        tied.weight = nn.Embedding(4, 4, padding_idx=1).weight
        made = nn.ModuleList(
            [
                nn.LSTM(4, 5),
                nn.MultiheadAttention(8, 2),
                nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
                nn.TransformerDecoderLayer(16, 2),
                nn.BatchNorm2d(4),
                tied,
            ]
        )
    assert not without_values()
    assert all(p.is_meta for p in made.parameters())
    assert all(p.is_meta for p in made[0]._flat_weights)
    assert not any(b.is_meta for b in made.buffers())
    frozen = nn.Linear(2, 2)
    assert not frozen.weight.is_meta


SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.scale = self.a.weight.abs().mean().item() if read else 1.0
    def forward(self, x):
        return self.b(self.a(x) * self.scale)

def net(read: bool = False):
    return Net(read), torch.randn(2, 8)
"""


def test_a_users_model_and_one_that_reads_its_values(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    module, _ = build_without_values(f"{tmp_path}/net.py:net", None)
    assert all(p.is_meta for p in module.parameters())
    module, _ = build_without_values(f"{tmp_path}/net.py:net", None, {"read": True})
    assert not any(p.is_meta for p in module.parameters())


@pytest.mark.slow
def test_memory_stays_small() -> None:
    """2.4 billion parameters, in a process of its own: the peak is that of the imports and one layer."""
    code = (
        "import resource\n"
        "from msfusion.models import build_without_values\n"
        "size = {'layers': 48, 'embed': 2048, 'heads': 16}\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "module, _ = build_without_values('gpt', None, size)\n"
        "assert sum(p.numel() for p in module.parameters()) > 2.4e9\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 100e6
