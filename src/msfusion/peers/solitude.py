"""When to tell that nobody of the group is heard."""


class Solitude:
    """Keeps time.

    wait: seconds without anybody before it is told.
    """

    def __init__(self, wait: float) -> None:
        self._wait = wait
        self._linked: bool | None = None
        self._since = 0.0
        self._told: set[bool] = set()
        self._over = False

    def end(self) -> None:
        """Somebody is heard."""
        self._over = True

    def overdue(self, linked: bool, now: float) -> bool:
        """Whether to tell it: once while there is no link to anybody, and once while there is.

        now: monotonic seconds.
        """
        if linked != self._linked:
            self._linked, self._since = linked, now
        if self._over or linked in self._told or now - self._since < self._wait:
            return False
        self._told.add(linked)
        return True
