"""Running statistics of batch norm, which are estimated from data and never merged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from msfusion.core.seeds import derive
from msfusion.learn.evaluation import uncompiled
from msfusion.learn.local import batches, seeded

_BATCH = 64  # examples of a participant


@torch.no_grad()
def estimate_batch_norm(module: nn.Module, data: Sequence[Dataset[Any]], seed: int) -> None:
    """Re-estimate running statistics from the participants' training data (HeteroFL's static batch norm).

    Statistics of windows that moved say nothing about the full model, so they are never merged: the full
    model sees one batch from each participant, and the cumulative mean is kept. Batch norm
    that stays in evaluation mode while the model trains keeps its statistics, and no other buffer changes.
    A batch with a single value per channel says nothing of how they spread, and is passed over.
    Does nothing for a model without batch norm.
    """
    device = next(module.parameters()).device
    before = module.training
    norms = [part for part in module.train().modules() if isinstance(part, _BatchNorm) and part.training]
    if norms:
        with seeded(seed, device), uncompiled(module), _anew(norms), _kept(module, norms):
            for participant, own in enumerate(data):
                if len(own):  # type: ignore[arg-type]
                    for x, _ in batches(own, _BATCH, 1, derive(seed, "statistics", participant)):
                        with _single_values_passed_over(norms):
                            module(x.to(device))
    module.train(before)


def one_value(error: ValueError) -> bool:
    """Whether a norm refuses a batch because every channel has a single value in it; torch's error has no
    class of its own."""
    return "more than 1 value per channel" in str(error)


@contextmanager
def _single_values_passed_over(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """A batch that is refused leaves no trace: torch has counted it, and norms before the one that refused it
    have taken it in."""
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    except ValueError as error:
        if not one_value(error):
            raise
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def _anew(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Where batch norms forget their statistics and then take the mean over all batches."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def _kept(module: nn.Module, but: Sequence[nn.Module]) -> Iterator[None]:
    """Where buffers may change, or be replaced, for a while only, those of some parts for good."""
    before = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        if owner not in but
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for owner, name, buffer, value in before:
            owner._buffers[name] = buffer.copy_(value)
