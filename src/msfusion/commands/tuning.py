"""One setting of every method tried with the same values, by runs of their own."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msfusion import records
from msfusion.config import parse_setting
from msfusion.errors import UserError

Scores = dict[str, list[float]]
"""Method -> the score with each value of the grid; NaN where training diverged."""


@dataclass(frozen=True)
class Grid:
    """The values of a setting that every method is tried with."""

    key: str
    values: tuple[Any, ...]

    @staticmethod
    def parse(text: str) -> "Grid":
        """``train.lr=[0.02, 0.05]``; UserError for anything else."""
        key, values = parse_setting(text)
        if not isinstance(values, list) or len(values) < 2:
            raise UserError(f"expected values to try such as train.lr=[0.02, 0.05], got {text!r}")
        if key in ("seed", "method", "rounds"):
            raise UserError(f"expected a setting that every method can be tried with to tune, got {key!r}")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise UserError(f"expected values that differ from each other to try, got {text!r}")
        return Grid(key, tuple(values))

    def folders(self, out: Path) -> list[Path]:
        """The run directory of each value, below that of a method."""
        return [out / f"{self.key}={value}" for value in self.values]

    def best(self, scores: Sequence[float], *, metric: str) -> Any:
        """The value with the best score; UserError where training diverged with all of them."""
        sign = 1 if metric == "accuracy" else -1
        if all(math.isnan(score) for score in scores):
            raise UserError(
                f"expected training to succeed with one of {self.key} = {list(self.values)}, it diverged "
                "with all of them; try smaller values"
            )
        ranked = [(-math.inf if math.isnan(s) else sign * s) for s in scores]
        return self.values[ranked.index(max(ranked))]


def score(folder: Path, rounds: int) -> float:
    """The metric at the end of a run; NaN where it did not get to its end, or diverged there."""
    run = records.read(folder)
    last = run.rounds[-1] if run.rounds else None
    if last is None or last["round"] + 1 < rounds or last["evaluation"] is None:
        return math.nan
    value: float | None = last["evaluation"][run.header["metric"]]
    return math.nan if value is None or last["evaluation"]["loss"] is None else value


def facts(grid: Grid, seed: int, scores: Scores, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder of results says of its tuning."""
    return {
        "setting": grid.key,
        "values": list(grid.values),
        "seed": seed,
        "scores": {m: [None if math.isnan(s) else s for s in own] for m, own in scores.items()},
        "chosen": dict(chosen),
    }


def kept(file: Path, grid: Grid) -> dict[str, Any]:
    """The facts that a file states, where they are of the same grid; else none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    none = facts(grid, 0, {}, {})
    if not isinstance(found, dict) or found.keys() != none.keys():
        return {}
    return found if all(found[key] == none[key] for key in ("setting", "values")) else {}


def seed_beside(seeds: int, file: Path, grid: Grid) -> int:
    """The seed that values are tried on: that of the kept tries, else the first that is not compared.
    UserError where the tries were made on a seed that is."""
    seed: int = kept(file, grid).get("seed", seeds)
    if seed < seeds:
        raise UserError(
            f"expected seeds to compare that {grid.key} was not tuned with, got 0 to {seeds - 1}, while "
            f"{file} was tuned with seed {seed}; give another --out, or --seeds {seed}"
        )
    return seed


def with_kept(new: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """New facts, and what old ones of the same seed say of other methods."""
    if old.get("seed") != new["seed"]:
        return new
    return new | {key: {**old[key], **new[key]} for key in ("scores", "chosen")}
