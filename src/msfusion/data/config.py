"""Configuration of the data."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Partition = Literal["iid", "dirichlet", "pathological", "blocks"]


@dataclass(frozen=True)
class Data:
    """Which data, how much of them, and how they are divided among the participants."""

    name: Literal["digits", "cifar10", "text", "parquet", "folder"] = "digits"  # what kind
    path: str | None = None  # file or folder; digits are bundled and need none
    # Who gets which examples; none: dirichlet by labels, or for text blocks, one after the other
    partition: Partition | None = None
    alpha: Annotated[float, Gt(0)] = 0.3  # dirichlet: smaller is more uneven
    classes_per_participant: Annotated[int, Gt(0)] = 2  # pathological: how many each gets
    min_examples: Annotated[int, Ge(0)] = 1  # that every participant must have; a run needs 1
    # Most to train on, drawn by the seed; text: its first so many times block tokens, where an example begins
    # at each token
    limit: Annotated[int, Gt(0)] | None = None
    test_limit: Annotated[int, Gt(0)] | None = None  # most to test on, drawn alike
    image: Annotated[int, Gt(0), Le(8192)] | None = None  # side that images are resized to, antialiased
    augment: bool = False  # images: random crop after padding by an eighth, and random flip, in training
    block: Annotated[int, Gt(0)] = 64  # text: length of an example
    tokenizer: Literal["character", "byte", "bpe"] = "character"  # text: what a token is
    vocabulary: Annotated[int, Gt(256)] = 1024  # bpe: how many kinds, 256 of them single bytes
    # Share of the examples (text: the end of the text) for testing, where a source has no test split.
    # none: 0.2, or 0.1 for text
    test_share: Annotated[float, Gt(0), Lt(1)] | None = None
    image_column: str | None = None  # parquet; none: the one column of encoded images
    label_column: str | None = None  # parquet; none: label, else the one column of integers or of names
