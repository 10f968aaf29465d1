"""A contribution over a link that is slow: it arrives, once, in about the link's own time."""

import time
from collections.abc import Iterator

import pytest
import torch
from group import free_port
from slow_link import SlowLink

from msfusion.peers.board import Board
from msfusion.peers.network import Network, Serve
from msfusion.peers.pieces import Wanted
from msfusion.peers.settings import Link
from msfusion.peers.states import State, Version
from msfusion.peers.strip import Strip
from msfusion.peers.transport import configuration

FIRST = Version(0, "first")


def network(number: int, serve: Serve, **link: object) -> tuple[Network, Board]:
    board = Board(State(number, f"s{number}", 1, FIRST, FIRST), patience=10.0)
    config = configuration(Link(**link), str(number), "test", lease=4.0)  # type: ignore[arg-type]
    return Network(config, "test", "run", board, serve), board


class Across:
    """Two peers, the second of which reaches the first over a slow link only."""

    def __init__(self, megabytes: float, rate: float) -> None:
        port = free_port()
        self.values = torch.randn(int(megabytes * 250_000))
        self.near, self._near_board = network(
            0, lambda path: Strip([self.values]), listen=[f"127.0.0.1:{port}"]
        )
        self.link = SlowLink(port, rate)
        self.far, self.board = network(1, lambda path: None, connect=[f"127.0.0.1:{self.link.port}"])
        limit = time.monotonic() + 30
        while len(self.board.here()) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)

    def fetch(self) -> float:
        """Seconds until the values are there; the other counts as here all the time."""
        values = torch.zeros_like(self.values)
        start = time.monotonic()
        self.far.fetch(
            [Wanted(lambda: [0], "given/digest/0", Strip([values]))], lambda: len(self.board.here()) == 2
        )
        seconds = time.monotonic() - start
        assert torch.equal(values, self.values)
        return seconds

    def close(self) -> None:
        self.far.close()
        self.near.close()
        self.link.close()


@pytest.fixture
def across(request: pytest.FixtureRequest) -> Iterator[Across]:
    across = Across(*request.param)
    yield across
    across.close()


@pytest.mark.slow
@pytest.mark.parametrize("across", [(2.0, 1e6)], indirect=True)
def test_what_crosses_a_slow_link_crosses_it_once(across: Across) -> None:
    across.fetch()
    assert len(across.values) * 4 < across.link.bytes["back"] < 1.05 * len(across.values) * 4


@pytest.mark.deployed
@pytest.mark.parametrize("across", [(20.0, 2e6)], indirect=True)
def test_twenty_megabytes_in_the_time_of_the_link(across: Across) -> None:
    seconds = across.fetch()
    crossed = across.link.bytes["back"]
    print(f"{crossed / 1e6:.2f} MB in {seconds:.2f} s")  # pytest -s
    assert 20e6 < crossed < 1.05 * 20e6
    assert seconds < 1.2 * 10.0, f"{seconds:.2f} s for {crossed} bytes"
