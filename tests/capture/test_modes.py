"""Narrow modules under autocast, compiled, and with dropout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import filled, halved, last_units
from torch import Tensor, nn
from zoo import ROWS, LlamaLike, NanoGPT, Row, images, tokens

from msfusion.models.gpt import gpt
from msfusion.models.resnet import resnet18


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def small(row: Row, *, graph: bool = False) -> nn.Module:
    """The narrow module with values; ``graph``: residual streams whole, so that nanoGPT needs the graph."""
    return filled(row, last_units(row, halved(row, without=row.residual if graph else ())))


NAMES = [pytest.param("resnet18", marks=pytest.mark.slow), "gpt", "llama-like", "nanogpt"]
modules = pytest.mark.parametrize("name", NAMES)
"""nanoGPT runs through the captured graph, the others through their own forwards."""


@modules
def test_autocast_computes_in_bfloat16(name: str) -> None:
    row = row_named(name)
    module, (args, _) = small(row, graph=name == "nanogpt").train(), row.inputs(3)
    expected = module.eval()(*args)
    module.train()
    with torch.autocast("cpu", torch.bfloat16):
        found = module.eval()(*args)
        loss = module.train()(*args).square().mean()
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    loss.backward()
    assert all(p.grad.dtype is torch.float32 for p in module.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns about itself
@modules
def test_compiled_modules_compute_the_same(name: str) -> None:
    row = row_named(name)
    module, (args, _) = small(row, graph=name == "nanogpt"), row.inputs(3)
    compiled: Callable[..., Any] = torch.compile(module, backend="aot_eager")
    for training in (False, True):
        module.train(training)
        torch.manual_seed(0)
        expected: Tensor = module(*args)
        found = compiled(*args)
        if not training:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.square().mean().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    torch._dynamo.reset()


def with_dropout(model: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(model(), nn.Dropout(0.5))


DROPPED = [
    Row("resnet18", with_dropout(lambda: resnet18(10, 3, 16)), images(16), 12, slow=True),
    Row("gpt", lambda: gpt(61, 16, 2, 4, 32, dropout=0.2), tokens(), 5),
    Row("llama-like", with_dropout(LlamaLike), tokens(), 5),
    Row("nanogpt", with_dropout(NanoGPT), tokens(), 5, ("0.wte.out",)),
]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=pytest.mark.slow if row.slow else ()) for row in DROPPED]
)
def test_dropout_is_there_in_train_mode_only(row: Row) -> None:
    module, (args, _) = small(row, graph=bool(row.residual)), row.inputs(3)
    assert ("_captured_graphs" in vars(module)) == bool(row.residual)
    for training in (True, False, True):
        module.train(training)
        first, second = (module(*args) for _ in range(2))
        assert torch.equal(first, second) != training
