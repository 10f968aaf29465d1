"""What loading data ends with."""

from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import Dataset

from msfusion.models import InputSpec


@dataclass(frozen=True)
class Federation:
    """The data of all participants, and the test set."""

    train: tuple[Dataset[Any], ...]  # one per participant
    test: Dataset[Any]
    inputs: InputSpec
    task: Literal["classification", "language"]
    meaning: str = ""  # what labels or tokens stand for, where that follows from the data
