"""Derived seeds: pinned values, and no dependence on the process."""

import os
import subprocess
import sys

import pytest

from msfusion.core.seeds import derive, generator

GOLDEN = {
    (0, "x", 1): 3317234040411685743,
    (0,): 4761921975702974394,
    (7, "batches", 3, 11): 8831268931162272832,
}


@pytest.mark.parametrize("arguments", GOLDEN)
def test_values_never_change(arguments: tuple[int, ...]) -> None:
    assert derive(*arguments) == GOLDEN[arguments]


def test_every_part_counts() -> None:
    seeds = [derive(0, "x", 1), derive(1, "x", 1), derive(0, "y", 1), derive(0, "x", 2), derive(0, 1, "x")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_rounds_and_participants_never_share_a_seed() -> None:
    seeds = {derive(0, "batches", round, participant) for round in range(60) for participant in range(60)}
    assert len(seeds) == 3600


def test_a_generator_starts_anew_at_each_call() -> None:
    assert generator(3, "x").random() == generator(3, "x").random()
    assert generator(3, "x").random() != generator(3, "y").random()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_string_hashing_has_no_part_in_it(hash_seed: str) -> None:
    program = (
        "from msfusion.core.seeds import derive; "
        "from msfusion.core.windows import RandomUnits, colour_axes; "
        "print(derive(0, 'x', 1), RandomUnits({'a': 9, 'b': 9}, 0).windows(1, 2, {'a': 3, 'b': 3}), "
        "colour_axes('abcd', [('a', 'b'), ('b', 'c'), ('a', 'c')]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "3317234040411685743 {'a': ((0, 1), (3, 4), (5, 6)), 'b': ((0, 1), (2, 4))} "
        "{'a': 0, 'b': 1, 'c': 2, 'd': 0}\n"
    )
