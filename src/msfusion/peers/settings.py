"""Settings of a group of peers, and how a peer reaches the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from msfusion.errors import UserError
from msfusion.peers.wire import Kind

_SIGNS = "/*?#$"
"""What has a meaning of its own in the keys that peers meet at."""


@dataclass(frozen=True)
class Peers:
    """What all peers of a run agree on."""

    group: str = "msfusion"  # peers of different groups never meet
    names: list[str] = field(default_factory=list)  # of the participants, by number; empty: 0, 1, 2, ...
    replicas: Annotated[int, Ge(0)] = 1  # copies of every shard beside the one at its home
    deadline: Annotated[float, Gt(0)] = 600.0  # seconds after which a round goes on without a contribution
    lease: Annotated[float, Ge(0.5)] = 4.0  # seconds of silence after which a peer is taken for dead
    settle: Annotated[float, Ge(0)] = 10.0  # seconds that a peer looks for others before it begins without
    start: Annotated[int, Ge(1)] | None = None  # peers that must be here before round 0; none: all
    wire: Kind = "float32"  # how values travel; bfloat16: half the bytes, rounded on the way
    norm_bound: Annotated[float, Gt(1)] = 10.0  # largest change (RMS), as a multiple of the others' median


@dataclass(frozen=True)
class Link:
    """How one peer reaches the others.

    connect: addresses HOST:PORT of peers, or of a router.
    listen: addresses on which others reach it; loopback, at any free port, by default.
    certificates: folder with authority.pem, NAME.pem and NAME.key; None: no encryption.
    outbound: only connect, to a router.
    insecure: allow other networks than loopback without certificates.
    """

    connect: Sequence[str] = ()
    listen: Sequence[str] = ("127.0.0.1:0",)
    certificates: Path | None = None
    outbound: bool = False
    insecure: bool = False

    def __post_init__(self) -> None:
        listen = () if self.outbound else self.listen
        for address in (*self.connect, *listen):
            host = checked_address(address)
            if self.certificates is None and not self.insecure and not _is_loopback(host):
                raise UserError(
                    f"expected certificates (--certs DIR) for {address}, which is not on this machine, got "
                    "none; make them with msfusion certs, or allow anyone to listen and to take part with "
                    "--insecure-network"
                )
        if self.outbound and not self.connect:
            raise UserError("expected the address of a router (--connect HOST:PORT) for --outbound, got none")

    @property
    def hidden(self) -> bool:
        """Whether it leads to other machines, from none of which a link can be opened to this peer."""
        away = any(not _is_loopback(checked_address(address)) for address in self.connect)
        return (
            away
            and not self.outbound
            and all(_is_loopback(checked_address(address)) for address in self.listen)
        )


def check_group(peers: Peers, participants: int) -> None:
    """Raise UserError for names that cannot be told apart or cannot be part of a key or of a file's name, and
    for a start that nobody can wait for."""
    check_name("a peers.group", peers.group)
    for name in peers.names:
        check_name("names in peers.names", name)
        if peers.names.count(name) > 1:
            raise UserError(f"expected each name in peers.names once, got {name!r} twice: rename one of them")
    if peers.start is not None and peers.start > participants:
        raise UserError(
            f"expected a peers.start of at most {participants}, the number of participants, got "
            f"{peers.start}: lower it, or leave it out to wait for all"
        )


def check_name(what: str, name: str) -> None:
    """Raise UserError for what cannot be part of a key; ``what`` it names."""
    if not name or any(sign in name for sign in _SIGNS):
        raise UserError(
            f"expected {what} with letters and none of {' '.join(_SIGNS)}, got {name!r}: rename it"
        )


def number_of(name: str, names: Sequence[str], participants: int) -> int:
    """The number of a participant; raises UserError for a name that is not of the group."""
    if names and len(names) != participants:
        raise UserError(
            f"expected a name in peers.names for each of {participants} participants, got {len(names)}"
        )
    known = list(names) or [str(i) for i in range(participants)]
    if name not in known:
        raise UserError(f"expected a participant out of {', '.join(known)}, got {name!r}")
    return known.index(name)


def name_of(number: int, names: Sequence[str]) -> str:
    """What a participant is called."""
    return names[number] if number < len(names) else str(number)


def checked_address(address: str) -> str:
    """The host of HOST:PORT; raises UserError for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UserError(f"expected an address as HOST:PORT, got {address!r}")
    return host.strip("[]")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
