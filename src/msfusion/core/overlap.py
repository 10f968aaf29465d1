"""Adaptive overlap: the overlap rate of the next rounds, from what all participants know.

A rate is held for whole epochs of the windows (core/windows.py), and epochs are counted from the round in
which it changed: a grid of slots is always run through to its end before another one begins.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["constant", "linear", "cosine", "exponential", "feedback"]

_DECAY = 3.0  # an exponential schedule covers 1 - e^-3, 95%, of an unending one


@dataclass(frozen=True)
class Rule:
    """How the overlap rate moves.

    first: rate of the first epoch; for "constant" of all.
    last: rate that a schedule over the rounds ends near.
    rounds: length of the run.
    target: "feedback" raises the rate where the model shift is above it and lowers it where it is below,
    gain: by so much where it is twice or half the target, or further off.
    most: the highest rate that feedback goes to; the lowest is 0.
    """

    kind: Kind = "constant"
    first: float = 0.0
    last: float = 0.0
    rounds: int = 1
    target: float = 1.0
    gain: float = 0.1
    most: float = 0.75


@dataclass(frozen=True)
class State:
    """The rate, the round since which it holds, and the sum and number of shifts measured in this epoch."""

    rate: float
    since: int = 0
    total: float = 0.0
    measured: int = 0


@dataclass(frozen=True)
class Signal:
    """What is known after a round: its number, the rounds in an epoch at this rate, and the model shift
    (core/merge.py) where one was measured."""

    round: int
    epoch: int
    shift: float | None = None


def advance(state: State, signal: Signal, rule: Rule) -> State:
    """The state of the next round; the rate changes only where an epoch ends."""
    if signal.shift is not None:
        state = replace(state, total=state.total + signal.shift, measured=state.measured + 1)
    upcoming = signal.round + 1
    if (upcoming - state.since) % signal.epoch:
        return state
    rate = _rate(state, upcoming, rule)
    return State(rate, since=state.since if rate == state.rate else upcoming)


def _rate(state: State, round: int, rule: Rule) -> float:
    done = min(1.0, round / max(1, rule.rounds - 1))
    match rule.kind:
        case "constant":
            return state.rate
        case "linear":
            left = 1 - done
        case "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
        case "exponential":
            left = (math.exp(-_DECAY * done) - math.exp(-_DECAY)) / (1 - math.exp(-_DECAY))
        case "feedback":
            return _answered(state, rule)
    return rule.last + (rule.first - rule.last) * left


def _answered(state: State, rule: Rule) -> float:
    if not state.measured:
        return state.rate
    shift = state.total / state.measured
    doublings = math.log2(shift / rule.target) if shift > 0 else -1.0
    return min(rule.most, max(0.0, state.rate + rule.gain * min(1.0, max(-1.0, doublings))))
