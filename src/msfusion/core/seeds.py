"""Every random choice is a function of (seed, purpose, round, participant, ...)."""

import hashlib
import random


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose, e.g. ``derive(seed, "batches", round, participant)``."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *purpose: str | int) -> random.Random:
    """A generator of its own for one purpose."""
    return random.Random(derive(seed, *purpose))
