"""Small runs, one by one and at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from msfusion import Run
from msfusion.learn.local import Train
from msfusion.models import build
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Result, Simulation


def examples(name: str, number: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(number)
    if name == "gpt":
        tokens = torch.randint(65, (number, 13), generator=draw)
        return TensorDataset(tokens[:, :-1], tokens[:, 1:])
    shape = {"mlp": (64,), "cnn": (1, 8, 8)}.get(name, (3, 8, 8))
    x = torch.randn(number, *shape, generator=draw)
    return TensorDataset(x, torch.randint(10, (number,), generator=draw))


def simulation(
    model: nn.Module, data: list[TensorDataset], out: Path | None = None, **changes: Any
) -> Simulation:
    run = Run(**{"width": 0.5, "rounds": 2, "train": Train(batch=8, steps=3), **changes})
    return Simulation(Problem(model, (data[0].tensors[0][:2],), data, data[0], name="model"), run, out=out)


def both(name: str, options: Mapping[str, Any], sizes: tuple[int, ...], **changes: Any) -> list[Result]:
    """The same run one by one and at once."""
    results = []
    for batched in ("off", "on"):
        torch.manual_seed(0)
        model = build(name, None, dict(options))[0]
        data = [examples(name, size) for size in sizes]
        results.append(simulation(model, data, batched=batched, **changes).run())
    return results
