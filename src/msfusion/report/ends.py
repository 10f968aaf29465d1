"""Which seeds of a method came to their end."""

from collections.abc import Sequence

from msfusion.records import Run
from msfusion.report.runs import Group


def lengths(groups: Sequence[Group]) -> dict[str, int]:
    """The rounds of each group's runs, as they state them, or as one has that was resumed with more."""
    longest = max((len(run.rounds) for group in groups for run in group.runs), default=0)
    return {group.label: _length(group, longest) for group in groups}


def _length(group: Group, longest: int) -> int:
    stated = group.first.header["config"].get("rounds")
    return max(stated, *(len(run.rounds) for run in group.runs)) if isinstance(stated, int) else longest


def diverged(run: Run) -> bool:
    """Whether the last loss on the test set was not finite."""
    scores = [record["evaluation"] for record in run.rounds if record["evaluation"] is not None]
    return bool(scores) and scores[-1]["loss"] is None


def ended(group: Group, rounds: int) -> list[Run]:
    """The runs that have so many rounds and did not diverge."""
    return [run for run in group.runs if len(run.rounds) >= rounds and not diverged(run)]


def drawn(group: Group, rounds: int) -> list[Run]:
    """The runs that a method's line is the mean of: those that have ended, as in its final score; where none
    has, all that have not diverged, as far as the shortest goes."""
    going = [run for run in group.runs if run.rounds and not diverged(run)]
    return ended(group, rounds) or going or list(group.runs)
