"""The end of a peer's run: doing what is left to do, and staying for those who still need it."""

import time
from collections.abc import Callable

from msfusion.peers.board import Board
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.lead import Clock
from msfusion.peers.member import Member
from msfusion.peers.settings import Peers


class Ending:
    """What a peer goes through once all rounds are done.

    participants, rounds: of the run.
    late: whether all rounds were done when this peer was started.
    """

    def __init__(
        self, peers: Peers, participants: int, rounds: int, board: Board, member: Member, *, late: bool
    ) -> None:
        self._peers, self._participants, self._rounds = peers, participants, rounds
        self._board, self._member, self._late = board, member, late

    def finish(self, last: Callable[[], bool], waits: Callable[[], None], *, wanted: bool) -> None:
        """Do what is done of the last version; anew where the group is disturbed, or left no time.

        last: does it; whether the group left the time.
        waits: called again and again while the group does not stand behind all rounds.
        wanted: whether ``last`` needs others.
        """
        done = False
        while not done:
            self._join(waits, wanted)
            try:
                done = last()
            except Disturbed:
                done = False

    def linger(self, sent: Callable[[], int]) -> None:
        """Stay until everyone here has all that they need, or nothing more is heard of what they do; where
        all rounds were done when this peer was started, also as long as others need to be found.

        sent: how many bytes others have been given.
        """
        self._board.update(done=True)
        clock = Clock()
        while True:
            here = self._board.here()
            busy = {n: state for n, state in here.items() if not state.done}
            finding = self._late and len(here) < self._participants and not self._settled()
            asked = clock.passed((busy, sent()))
            if not finding and (not busy or asked > self._peers.deadline):
                break
            self._board.pause(self._board.news, 0.5)
        time.sleep(0.6)

    def _join(self, waits: Callable[[], None], wanted: bool) -> None:
        """Wait until the group stands behind all rounds, as it does unless this peer was started again; no
        longer than for others to come, where nothing is wanted of them."""

        def there() -> bool:
            own = self._board.own
            last = own.view is not None and own.at.round == self._rounds
            return last or self._member.error is not None

        while not self._board.wait(there, 0.5) and (wanted or not self._settled()):
            waits()
        if self._member.error is not None:
            raise self._member.error

    def _settled(self) -> bool:
        """Whether this peer has been here for as long as others need to be found."""
        return time.monotonic() - self._board.started > self._peers.settle
