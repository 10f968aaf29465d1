"""From a configuration to the data of every participant."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from msfusion.data.config import Data
from msfusion.data.digits import load_digits
from msfusion.data.examples import LabelledImages, TokenBlocks
from msfusion.data.federation import Federation
from msfusion.data.folder import load_folder
from msfusion.data.parquet import load_cifar10, load_parquet
from msfusion.data.partition import partition
from msfusion.data.source import Source
from msfusion.data.text import read_text
from msfusion.data.tokens import tokenize
from msfusion.errors import UserError
from msfusion.models import InputSpec

IMAGE_SOURCES: dict[str, Callable[[Data, int], Source]] = {
    "cifar10": load_cifar10,
    "digits": load_digits,
    "folder": load_folder,
    "parquet": load_parquet,
}


def load(config: Data, participants: int, seed: int) -> Federation:
    """The data of ``participants`` participants and the test set: a function of its arguments and the files.

    ``UserError`` where files are missing or broken, or where the data do not suffice for the participants."""
    if participants < 1:
        raise UserError(f"expected at least 1 participant, got {participants}: raise their number")
    if config.path == "":  # which would be the working directory
        raise UserError(
            "expected a file or folder of data (--data, data.path), got an empty text: name one, or "
            "leave it out"
        )
    if config.name == "digits" and config.path is not None:
        raise UserError(
            f"expected no path for the bundled digits, got {config.path!r}: leave it out, or set data.name"
        )
    if config.name == "text":
        return _load_text(config, participants)
    return _divide(IMAGE_SOURCES[config.name](config, seed), config, participants, seed)


def _divide(source: Source, config: Data, participants: int, seed: int) -> Federation:
    if not len(source.test.labels):
        raise UserError(
            "expected at least one test example, got none: raise data.test_share or data.test_limit"
        )
    if participants > 1 and len(found := np.unique(source.train.labels)) == 1:  # one may have one class alone
        name = repr(source.names[found[0]]) if source.names else found[0]
        raise UserError(
            f"expected training examples of at least two classes, got those of {name} alone: see whether "
            "data.path is right, or raise data.limit"
        )
    parts = partition(source.train.labels, config, participants, seed, source.names)
    labels = torch.from_numpy(source.train.labels)
    images = _channels_first(source.train.images)
    mean, std = mean_and_std(images)
    train = tuple(
        LabelledImages(images, labels, torch.from_numpy(rows), mean, std, config.augment) for rows in parts
    )
    test_labels = torch.from_numpy(source.test.labels)
    test = LabelledImages(
        _channels_first(source.test.images), test_labels, torch.arange(len(test_labels)), mean, std
    )
    inputs = InputSpec(tuple(images.shape[1:]), torch.float32, source.classes)
    return Federation(train, test, inputs, "classification", "\n".join(source.names))


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, float32 ``(channels, 1, 1)``, of uint8 ``(N, channels, H, W)``; std 1 where constant.

    Counted in integers, so the result is the same on every machine and with any number of threads."""
    counts = torch.stack(
        [torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(images.shape[1])]
    )
    values = torch.arange(256)
    count = images.numel() // images.shape[1]
    total, squares = (counts * values).sum(1), (counts * values.square()).sum(1)
    mean = total.double() / count
    variance = squares.double() / count - mean.square()
    std = torch.where(variance > 0, variance, 1.0).sqrt()
    return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)


def _load_text(config: Data, participants: int) -> Federation:
    if config.partition not in (None, "blocks"):
        raise UserError(
            f"expected data.partition 'blocks' for text, which has no labels, got {config.partition!r}: "
            "set it to 'blocks'"
        )
    tokens = tokenize(read_text(config), config)
    train = _first_blocks(tokens.train, config.block, config.limit)
    test = _first_blocks(tokens.test, config.block, config.test_limit)
    each = config.block + max(1, config.min_examples)  # tokens for so many examples at stride 1
    _check_length(len(test), config.block + 1, config, "test text")
    _check_length(len(train), participants * each, config, f"training text of {participants} participants")
    cuts = [len(train) * i // participants for i in range(participants + 1)]
    parts = tuple(TokenBlocks(train, start, stop, config.block) for start, stop in pairwise(cuts))
    inputs = InputSpec((config.block,), torch.int64, tokens.vocabulary)
    whole = TokenBlocks(test, 0, len(test), config.block, stride=config.block)
    return Federation(parts, whole, inputs, "language", tokens.meaning)


def _first_blocks(tokens: Tensor, block: int, limit: int | None) -> Tensor:
    return tokens if limit is None else tokens[: limit * block + 1]


def _check_length(tokens: int, needed: int, config: Data, what: str) -> None:
    if tokens < needed:
        raise UserError(
            f"expected at least {needed} tokens in the {what}, got {tokens}: "
            f"take a longer text, fewer participants or a smaller data.block than {config.block}"
        )
