"""Which peers should have a link to this one and do not, and when it is time to do something about it.

Zenoh tries to link two peers when one first hears of the other. Where a link is lost on one side before the
other notices, as when a machine stood still, it may never be made again though both can be reached, or may
carry messages one way only (eclipse-zenoh/zenoh, issue 2806). A new session is a new peer to all others.
"""

from collections.abc import Collection

_LONGEST = 600.0  # seconds


class Splits:
    """Keeps time.

    own: this peer's number.
    wait: seconds after which a link that is missing does not come by itself. Of two peers that miss each
        other the higher waits so long, the lower twice as long; and twice as long again after each time.
    """

    def __init__(self, own: int, wait: float) -> None:
        self._own, self._least, self._wait = own, wait, wait
        self._since: dict[int, float] = {}

    def overdue(self, missed: Collection[int], now: float) -> list[int]:
        """Those who have been missed for too long; time for them begins anew.

        now: monotonic seconds.
        """
        self._since = {n: self._since.get(n, now) for n in missed}
        if not missed:
            self._wait = self._least
        late = [n for n, at in self._since.items() if now - at > self._wait * (1 + (self._own < n))]
        if late:
            self._wait = min(2 * self._wait, max(_LONGEST, self._least))
            self._since = {}
        return sorted(late)
