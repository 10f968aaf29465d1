"""What a peer tells its user of the group."""

from collections.abc import Callable, Sequence

from msfusion.peers import agreement
from msfusion.peers.board import Board
from msfusion.peers.settings import Link, name_of
from msfusion.peers.states import Version, View


class Teller:
    """Says what happens, by names; of rounds and views nothing twice in a row."""

    def __init__(self, board: Board, names: Sequence[str], say: Callable[[str], None]) -> None:
        self._board, self._names, self._say = board, names, say
        self._said = ""

    def waiting(self, here: int, wanted: int) -> None:
        """The run has not begun."""
        self._tell(f"waiting for {wanted - here} of {wanted} participants")

    def begun(self, without: Sequence[int]) -> None:
        """Round 0 has begun, and too few of those who began it are here."""
        if without:
            names = ", ".join(self._name(n) for n in without)
            self._tell(f"waiting for {names}: the run goes on with more than half of those who began it")

    def going_on(self, view: View) -> None:
        """There is a new view."""
        names = ", ".join(self._name(n) for n in view.members)
        self._tell(f"{len(view.members)} here ({names}), going on from round {view.base.round}")

    def slow(self, number: int, why: str, seconds: float) -> None:
        """A member is left behind."""
        self._tell(f"{self._name(number)} {why} within {seconds:g} s: going on without it")

    def nobody(self, at: Version, seconds: float) -> None:
        """All members are drawn, and none has contributed."""
        self._tell(f"nobody has ended round {at.round} within {seconds:g} s: waiting for the first")

    def missing(self, base: Version, shards: Sequence[int]) -> None:
        """Nobody here has some shards."""
        last = self._board.last()
        had = {n for n, s in last.items() if set(shards) & agreement.held(s, base)}
        who = ", ".join(self._name(n) for n in sorted(had)) or "the peers that held them"
        self._tell(
            f"stopped after round {base.round}, the last safe one: nobody here has shards "
            f"{', '.join(map(str, shards))} of it; going on as soon as {who} can be reached"
        )

    def stranger(self, number: int) -> None:
        """A peer is of another run."""
        self._say(
            f"{self._name(number)} has another version of msfusion, configuration, model, list of classes, "
            "vocabulary or copy of the data and cannot take part: give all the same, or all --data of their "
            "own; texts of their own need data.tokenizer=byte"
        )

    def twin(self, number: int) -> None:
        """There is another peer with this one's number."""
        self._say(
            f"another peer that is participant {self._name(number)} is here: stop one of the two, if neither "
            "ends"
        )

    def split(self, numbers: Sequence[int]) -> None:
        """There is no link to some who are about."""
        names = ", ".join(self._name(n) for n in numbers)
        self._say(
            f"no link to {names}, though others have one or messages arrive: connecting anew; if that does "
            "not help, neither can reach the other: let one of the two listen where the other reaches it "
            "(--listen HOST:PORT), or connect through a router (--outbound)"
        )

    def alone(self, link: Link, group: str, linked: bool) -> None:
        """Nobody of the group has been heard of since the start."""
        if linked:
            self._say(
                f"has a link to somebody, but hears nobody of group {group!r}: where others have started, "
                "check that all have the same peers.group, and the .pem of everybody in the folder of --certs"
            )
        elif link.connect:
            self._say(
                f"nobody answers at {', '.join(link.connect)}: check this address and its port, that a peer "
                "or a router listens there and no firewall is between, and that either all use --certs or "
                "none, with certificates of one authority, the .pem of everybody in every folder, and clocks "
                "that are right"
            )

    def hidden(self, participants: int) -> None:
        """This peer connects to other machines, none of which can connect to it."""
        self._say(
            "listens on this machine alone, so others that do the same get no link to it: with "
            f"{participants} participants let all but one listen where the others reach them "
            "(--listen HOST:PORT), or all connect through a router (--outbound)"
        )

    def _name(self, number: int) -> str:
        return name_of(number, self._names)

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)
