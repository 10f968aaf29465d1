"""What is known of every peer at this moment."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from msfusion.peers.states import State


class Board:
    """The last state of every peer, one's own included; threads wait on it for news.

    patience: seconds without news after which a peer does not count as here, though its link still stands.
    """

    def __init__(self, own: State, patience: float) -> None:
        self.changed = threading.Condition()
        self.news = 0
        self.started = time.monotonic()
        self._own = own
        self._patience = patience
        self._seen: dict[int, tuple[State, float]] = {}
        self._sessions: dict[int, set[str]] = {}
        self._arrivals: Counter[int] = Counter()

    @property
    def own(self) -> State:
        return self._own

    def update(self, **changes: Any) -> None:
        """Change one's own state."""
        with self.changed:
            self._own = replace(self._own, **changes)
            self._notify()

    def hear(self, state: State) -> None:
        """Take in what another peer says."""
        with self.changed:
            if state.number == self._own.number:
                return
            before = self._seen.get(state.number)
            self._seen[state.number] = (state, time.monotonic())
            if before is None or before[0] != state:
                self._notify()

    def arrived(self, number: int, session: str) -> None:
        """A peer's token is there."""
        with self.changed:
            self._sessions.setdefault(number, set()).add(session)
            self._arrivals[number] += 1
            self._notify()

    def left(self, number: int, session: str) -> None:
        """A peer's token is gone."""
        with self.changed:
            self._sessions.get(number, set()).discard(session)
            self._notify()

    def unlinked(self) -> None:
        """All tokens are gone, as this peer has closed its session."""
        with self.changed:
            self._sessions = {}
            self._notify()

    def here(self) -> dict[int, State]:
        """The states of all who are here, ascending by number."""
        with self.changed:
            here = {n: s for n, s in self._heard().items() if s.session in self._sessions.get(n, ())}
            here[self._own.number] = self._own
            return dict(sorted(here.items()))

    def missed(self) -> set[int]:
        """Those who are not here though they are heard, or though others who are here hear them."""
        with self.changed:
            here = self.here()
            about = set(self._heard()).union(*(state.hears for state in here.values()))
            return about - set(here)

    def _heard(self) -> dict[int, State]:
        """The states of which there was news not long ago."""
        limit = time.monotonic() - self._patience
        return {n: state for n, (state, at) in self._seen.items() if at > limit}

    def link(self, number: int) -> int | None:
        """None while a peer is not here, and another number each time that it comes."""
        with self.changed:
            return self._arrivals[number] if number in self.here() else None

    def last(self) -> dict[int, State]:
        """The last known states of all others, gone or not."""
        with self.changed:
            return {n: state for n, (state, _) in self._seen.items()}

    def wait(self, until: Callable[[], bool], timeout: float) -> bool:
        """Wait for a condition; whether it has come true."""
        with self.changed:
            return self.changed.wait_for(until, timeout)

    def pause(self, news: int, timeout: float) -> None:
        """Wait until there is more news than ``news``, which counts it."""
        self.wait(lambda: self.news != news, timeout)

    def wake(self) -> None:
        """Make everyone who waits look again."""
        with self.changed:
            self._notify()

    def _notify(self) -> None:
        self.news += 1
        self.changed.notify_all()
