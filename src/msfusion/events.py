"""Scalars of a run as TensorBoard events, beside its records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msfusion.errors import optional
from msfusion.records import Round


class Events:
    """Writes every round's numbers into a run directory. UserError when tensorboard is not installed.

    Takes rounds like `records.Writer`. The first round decides where the events go on: what an interrupted
    run wrote for that round and later ones is hidden.
    """

    def __init__(self, directory: Path) -> None:
        what = "tensorboard, which writes the events"
        self._open = optional("torch.utils.tensorboard", what, "msfusion[report]").SummaryWriter
        self._directory = directory
        self._writer: Any = None

    def round(self, record: Round) -> None:
        """Writes one round; TensorBoard sees it on return."""
        step = record["round"]
        if self._writer is None:
            self._writer = self._open(str(self._directory), purge_step=step)
        for name, value in _scalars(record):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _scalars(record: Round) -> Iterator[tuple[str, float]]:
    score = record["evaluation"]
    numbers: dict[str, float | None] = {
        "train/loss": record["train_loss"],
        "full model/accuracy": score and score["accuracy"],
        "full model/loss": score and score["loss"],
        "windows/coverage": record["coverage"],
        "windows/overlap rate": record["overlap"],
        "windows/shift": record["shift"],
        "cost/FLOPs per round": record["flops"],
        "cost/bytes per round": record["bytes"],
        "cost/seconds": record["seconds"],
    }
    for name, value in numbers.items():
        if value is not None:
            yield name, value
