"""What peers say of themselves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import AllowInfNan, StringConstraints

# What names files and requests comes from others: no separators, no wildcards, no longer than a file's name.
_WORD = "[0-9A-Za-z]{1,64}"
VERSION = rf"([0-9]{{1,18}})-({_WORD})"
"""Pattern of a version's text."""
Word = Annotated[str, StringConstraints(pattern=f"^{_WORD}$")]
Text = Annotated[str, StringConstraints(pattern=f"^{VERSION}$")]
"""Of a version."""
Count = Annotated[int, Ge(0), Le(2**53)]
"""What a float holds exactly."""
Reason = Annotated[str, StringConstraints(max_length=500)]
Session = Annotated[str, StringConstraints(max_length=64)]
Size = Annotated[float, Ge(0), AllowInfNan(False)]


@dataclass(frozen=True, order=True)
class Version:
    """The full model after ``round`` rounds; equal lineages have equal values.

    lineage: hash of the configuration and of everything that was merged so far.
    """

    round: Annotated[int, Ge(0), Le(10**18 - 1)]
    lineage: Word

    @property
    def text(self) -> str:
        return f"{self.round:06d}-{self.lineage}"

    @staticmethod
    def parse(text: str) -> "Version":
        """Raises ValueError for anything but the text of a version."""
        found = re.fullmatch(VERSION, text)
        if found is None:
            raise ValueError(f"expected the text of a version, got {text!r}")
        return Version(int(found[1]), found[2])


@dataclass(frozen=True)
class Given:
    """A contribution that was merged: who, how many examples, training loss, and a hash of its values."""

    participant: int
    examples: Count
    loss: Annotated[float, AllowInfNan(False)] | None
    digest: Word | Literal[""]


@dataclass(frozen=True)
class Left:
    """A participant that is not in a round, and why."""

    participant: int
    reason: Reason


@dataclass(frozen=True)
class Entry:
    """What was merged in a round; the contributions ascend by participant.

    seconds: from the moment the round was open; not part of the lineage.
    shift: spread and size of the model shift (core/merge.py), where it is measured; known once all shards
        are merged, and not part of the lineage, from which it follows.
    """

    given: tuple[Given, ...]
    left: tuple[Left, ...]
    seconds: Size = 0.0
    shift: tuple[Size, Size] | None = None


@dataclass(frozen=True)
class Held:
    """Shards of one version on a peer's disk, and the lineage that the version came from.

    shifts: shard -> its part of the model shift, where that is measured.
    """

    parent: Word | Literal[""]
    shards: frozenset[int]
    shifts: dict[int, tuple[Size, Size]] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """Who plays together, from which version on.

    members: number -> session, which a restarted peer has anew.
    """

    epoch: Count
    lead: int
    members: dict[int, Session]
    base: Version

    @property
    def id(self) -> tuple[int, int]:
        return (self.epoch, self.lead)


@dataclass(frozen=True)
class Offer:
    """A contribution that homes may fetch.

    only: as in Contribution.
    failed: why there is none, where training went wrong.
    """

    version: Version
    given: Given
    only: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    failed: Reason | None = None


@dataclass(frozen=True)
class Check:
    """What a home found in its part of a contribution: the squared norm of the change and of how many values
    it is, or what is wrong."""

    digest: Word | Literal[""]
    squares: Size
    count: Count
    wrong: Reason | None = None


@dataclass(frozen=True)
class Decision:
    """What the lead of a view merges into a version."""

    view: tuple[int, int]
    version: Version
    entry: Entry


@dataclass(frozen=True)
class State:
    """What a peer says of itself, again and again.

    checks: of the contributions to ``at``, in the view ``view``: participant -> what was found.
    at: the version it works on.
    done: it needs nobody any more.
    hears: who is here, as far as it can tell.
    """

    number: int
    session: Session
    examples: Count
    committed: Version
    at: Version
    holds: dict[Text, Held] = field(default_factory=dict)
    view: View | None = None
    offer: Offer | None = None
    checks: dict[int, Check] = field(default_factory=dict)
    decision: Decision | None = None
    done: bool = False
    hears: frozenset[int] = frozenset()


States = Mapping[int, State]
"""Number -> state of every peer that is here, one's own included."""
