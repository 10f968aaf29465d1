"""Compiled sub-models: once per width plan and shape of a batch, wherever the windows move."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.data import TensorDataset

from msfusion import Run, UserError
from msfusion.learn import submodels
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train
from msfusion.models import build
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation


def simulation(sizes: tuple[int, ...], **changes: Any) -> Simulation:
    torch.manual_seed(0)
    model = build("mlp", None, {"hidden": [24, 24]})[0]
    data = [TensorDataset(torch.randn(n, 64), torch.randint(10, (n,))) for n in sizes]
    settings = {"width": 0.5, "rounds": 3, "train": Train(batch=8, steps=3), "compile": True, **changes}
    return Simulation(Problem(model, (torch.randn(2, 64),), data, data[0]), Run(**settings))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    torch._dynamo.reset()
    made = CompileCounter()
    monkeypatch.setattr(submodels, "BACKEND", made)
    return made


CASES: list[tuple[tuple[int, ...], dict[str, Any], int]] = [
    ((20, 9, 12, 30), {}, 1),
    ((20, 9, 12, 30), {"width": (0.5, 0.25)}, 2),
    ((20, 5, 12, 5), {}, 2),
    ((20, 9, 12, 30), {"method": "standalone"}, 1),
    ((20,) * 9, {"width": tuple(w / 24 for w in range(3, 21, 2))}, 9),  # by default 8 would be served
]


def last_is_slow(cases: list[tuple[tuple[int, ...], dict[str, Any], int]]) -> list[Any]:
    return [*cases[:-1], pytest.param(*cases[-1], marks=pytest.mark.slow)]


@pytest.mark.parametrize(("sizes", "changes", "expected"), last_is_slow(CASES))
def test_nothing_is_compiled_again_when_windows_move(
    counter: CompileCounter, sizes: tuple[int, ...], changes: dict[str, Any], expected: int
) -> None:
    """Three rounds, one plan; two plans; two sizes of a batch. Scoring compiles nothing."""
    run = simulation(sizes, **changes)
    windows = [run.learner.windows(round, run.participants[0]) for round in range(3)]
    assert windows[0] != windows[1] or run.config.method == "standalone"
    compiled = run.run()
    assert counter.frame_count == expected
    plain = simulation(sizes, compile=False, **changes).run()
    for one, other in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)  # the counter runs the graph as it is


AT_ONCE: list[tuple[tuple[int, ...], dict[str, Any], int]] = [
    ((20, 9, 12, 30), {}, 1),
    ((20, 9, 12, 30), {"width": (0.5, 0.25)}, 2),
    ((20, 5, 12, 5), {}, 2),
    ((9,) * 18, {"width": tuple(w / 24 for w in range(2, 20, 2))}, 9),
]


@pytest.mark.parametrize(("sizes", "changes", "expected"), last_is_slow(AT_ONCE))
def test_so_it_is_where_participants_train_at_once(
    counter: CompileCounter, sizes: tuple[int, ...], changes: dict[str, Any], expected: int
) -> None:
    """One program per plan and shape of a batch, for all of its participants."""
    compiled = simulation(sizes, batched="on", **changes).run()
    assert counter.frame_count == expected
    plain = simulation(sizes, batched="on", compile=False, **changes).run()
    for one, other in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_contrastive_loss_has_no_compiled_form() -> None:
    with pytest.raises(UserError, match="compile to be off beside the contrastive loss"):
        simulation((9, 9), contrast=Contrast(1.0))
