"""What follows from the labels that a participant has."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from msfusion.data import fetch
from msfusion.errors import UserError
from msfusion.learn.local import seeded


def label_counts(data: Dataset[Any]) -> Counter[int]:
    """How many examples (or tokens) there are of each label in a dataset."""
    counts: Counter[int] = Counter()
    with seeded(0, torch.device("cpu")):  # datasets may draw
        for index in torch.split(torch.arange(len(data)), 256):  # type: ignore[arg-type]
            labels, numbers = torch.unique(fetch(data, index, None)[1], return_counts=True)
            counts.update(dict(zip(labels.tolist(), numbers.tolist(), strict=True)))
    return counts


def check_range(counts: Mapping[int, int], classes: int, participant: int) -> None:
    """UserError for a label of a participant that no output has."""
    if wrong := [label for label in sorted(counts) if not 0 <= label < classes]:
        raise UserError(
            f"expected labels from 0 to {classes - 1}, as the model has {classes} outputs, got {wrong[0]} "
            f"from participant {participant}; mend the labels"
        )


def logit_adjustment(counts: Mapping[int, int], classes: int, strength: float) -> Tensor:
    """What is added to the logits in training: ``strength`` times the log of (n + 1) / (total + classes) for
    a label with n of ``total`` examples, (classes,).

    The bias of frequent labels is then in the addition, and what is learned is the model for labels that are
    equally frequent everywhere (logit adjustment, arXiv 2007.07314; by the labels of each participant: FedLC,
    arXiv 2209.00189). One example more of each label than there are keeps the logarithm finite. The loss of
    training is that of the adjusted logits.
    """
    total = sum(counts.get(label, 0) for label in range(classes)) + classes
    return torch.tensor([strength * math.log((counts.get(label, 0) + 1) / total) for label in range(classes)])
