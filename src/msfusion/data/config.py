"""Configuration of the data."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Partition = Literal["iid", "dirichlet", "pathological", "blocks"]


@dataclass(frozen=True)
class Data:
    """Which data, how much of them, and how they are divided among the participants."""

    name: Literal["digits", "cifar10", "text", "parquet", "folder"] = "digits"
    path: str | None = None  # file or folder; digits are bundled and need none
    # None: dirichlet, or blocks for text
    partition: Partition | None = None
    alpha: Annotated[float, Gt(0)] = 0.3  # dirichlet: smaller is more uneven
    classes_per_participant: Annotated[int, Gt(0)] = 2  # pathological
    min_examples: Annotated[int, Ge(0)] = 1  # that every participant must have; 0 allows empty ones
    limit: Annotated[int, Gt(0)] | None = None  # training examples (text: blocks) to use, chosen by the seed
    test_limit: Annotated[int, Gt(0)] | None = None  # test examples (text: blocks) to use
    image: Annotated[int, Gt(0)] | None = None  # resize images to this side, antialiased
    augment: bool = False  # images: random crop after padding by an eighth, and random flip, in training
    block: Annotated[int, Gt(0)] = 64  # text: tokens per example
    tokenizer: Literal["character", "byte", "bpe"] = "character"  # text
    vocabulary: Annotated[int, Gt(256)] = 1024  # bpe: number of tokens, 256 of them single bytes
    # Share of the examples (text: the end of the text) for testing, where a source has no test split.
    # None: 0.2, or 0.1 for text
    test_share: Annotated[float, Gt(0), Lt(1)] | None = None
    image_column: str | None = None  # parquet; None: the one column of encoded images
    label_column: str | None = None  # parquet; None: the one column of integers, else of names
