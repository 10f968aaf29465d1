"""The server step over the rounds."""

from typing import Any, get_args

import pytest

from msfusion.learn.steps import ServerStep, server_step

EXPECTED = {
    "constant": [1, 1, 1],
    "linear": [1, 0.525, 0.05],
    "cosine": [1, 0.525, 0.05],
    "exponential": [1, 0.05**0.5, 0.05],
}


@pytest.mark.parametrize("kind", get_args(ServerStep))
def test_first_middle_and_last_step(kind: Any) -> None:
    assert [server_step(kind, r, 11) for r in (0, 5, 10)] == pytest.approx(EXPECTED[kind])


@pytest.mark.parametrize("kind", get_args(ServerStep))
def test_never_rises_and_never_ends(kind: Any) -> None:
    steps = [server_step(kind, r, 30) for r in range(30)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] > 0


@pytest.mark.parametrize("kind", get_args(ServerStep))
def test_a_single_round_takes_the_whole_step(kind: Any) -> None:
    assert server_step(kind, 0, 1) == 1.0
