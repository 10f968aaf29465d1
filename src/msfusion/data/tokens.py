"""Text to token numbers: characters, bytes or byte pairs, all learned from the training text alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msfusion.data.config import Data
from msfusion.data.text import Text
from msfusion.errors import UserError, optional

_LINES = 1000  # lines per piece that the byte-pair tokenizer sees at once


@dataclass(frozen=True)
class Tokens:
    """A text as numbers below ``vocabulary``, in the smallest integer type that holds them."""

    train: Tensor  # (tokens,)
    test: Tensor
    vocabulary: int
    meaning: str  # what the numbers stand for, where that follows from the text


def tokenize(text: Text, config: Data) -> Tokens:
    """The text in the tokens of ``config.tokenizer``; UserError where a part of it is empty."""
    if not text.train or not text.test:
        raise UserError(
            f"expected text to train and to test on, got {len(text.train)} and {len(text.test)} characters: "
            "set data.test_share, or take a longer text"
        )
    encode: Callable[[Text, Data], Tokens] = {
        "character": _characters,
        "byte": _bytes,
        "bpe": _byte_pairs,
    }[config.tokenizer]
    return encode(text, config)


def _characters(text: Text, config: Data) -> Tokens:
    """Each character of the training text is a token; one more stands for all others in the test text."""
    train, test = (
        np.frombuffer(part.encode("utf-32-le"), dtype=np.uint32) for part in (text.train, text.test)
    )
    known, train_numbers = np.unique(train, return_inverse=True)
    places = np.searchsorted(known, test).clip(max=len(known) - 1)
    test_numbers = np.where(known[places] == test, places, len(known))
    vocabulary = len(known) + int((test_numbers == len(known)).any())
    return _store(train_numbers, test_numbers, vocabulary, known.tobytes().decode("utf-32-le"))


def _bytes(text: Text, config: Data) -> Tokens:
    train, test = (np.frombuffer(part.encode(), dtype=np.uint8) for part in (text.train, text.test))
    return _store(train, test, 256, "")


def _byte_pairs(text: Text, config: Data) -> Tokens:
    what = "the package tokenizers for data.tokenizer='bpe'"
    tokenizer = optional("tokenizers", what, "msfusion[hf]").ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        _pieces(text.train), vocab_size=config.vocabulary, min_frequency=2, show_progress=False
    )
    train, test = (
        np.concatenate([np.array(e.ids, dtype=np.int64) for e in tokenizer.encode_batch(_pieces(part))])
        for part in (text.train, text.test)
    )
    return _store(train, test, tokenizer.get_vocab_size(), tokenizer.to_str())


def _pieces(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    return ["".join(lines[i : i + _LINES]) for i in range(0, len(lines), _LINES)]


def _store(train: np.ndarray, test: np.ndarray, vocabulary: int, meaning: str) -> Tokens:
    dtype = np.uint8 if vocabulary <= 256 else np.int16 if vocabulary <= 2**15 else np.int32
    first, second = (torch.from_numpy(part.astype(dtype)) for part in (train, test))
    return Tokens(first, second, vocabulary, meaning)
