"""Exchange between two peers beside bare Zenoh gets of the same bytes and gloo's point-to-point operations.

Two processes over loopback TCP, shared memory off. In a turn each pulls its sub-model from the other's shards
and fetches the other's contribution, both at the same time as the other does: with the peers' own homes and
network, as in a round, but for what is trained, merged and written. Bare gets move bytes that lie ready, in
pieces of 1 MiB or in one, and drop what arrives; gloo moves tensors of the same length. All take turns.

    python benchmarks/peer_exchange.py
"""

import argparse
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from machine import machine, spread
from torch import Tensor

from msfusion.commands.peer import free_port
from msfusion.commands.peer_task import task_of
from msfusion.config import load
from msfusion.core.merge import Contribution
from msfusion.peers.network import Network
from msfusion.peers.peer import Peer
from msfusion.peers.pieces import Wanted
from msfusion.peers.settings import Link
from msfusion.peers.strip import CHUNK, Strip
from msfusion.peers.transport import configuration, zenoh

PRESET = """
participants = 2
width = 0.5
[model]
name = "mlp"
options = {{ hidden = [{hidden}, {hidden}, {hidden}] }}
[data]
name = "digits"
limit = 40
"""
HIDDEN = {10: 2200, 50: 4960}  # megabytes of a sub-model -> units of each layer
FLYING = 8  # gets under way at a time

Exchange = Callable[[], object]
Way = Callable[[int, int, Path, int], Exchange]
"""(number, megabytes, folder, port) -> what one of the two does in a turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", choices=HIDDEN, default=[10, 50])
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the processes that exchange
    print(machine())
    print("| contribution | exchange | MB/s per peer and direction | of bare gets | of gloo |")
    print("|---|---|---|---|---|")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            report(megabytes, played(megabytes, arguments.turns, Path(folder)))


def report(megabytes: int, runs: dict[str, list[float]]) -> None:
    """A line for every way; ratios are taken turn by turn."""
    bare = [min(pair) for pair in zip(runs["bare gets of 1 MiB"], runs["one bare get"], strict=True)]
    for name, seconds in runs.items():
        speed = [2 * megabytes / one for one in seconds]
        ratios = [
            spread([other / one for one, other in zip(seconds, others, strict=True)])
            for others in (bare, runs["gloo"])
        ]
        print(f"| {megabytes} MB | {name} | {spread(speed, '.0f')} | {ratios[0]} | {ratios[1]} |", flush=True)


def played(megabytes: int, turns: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of the slower side, turn by turn."""
    ways: dict[str, Way] = {
        "peers": peers,
        "bare gets of 1 MiB": partial(bare, piece=CHUNK),
        "one bare get": partial(bare, piece=None),
        "gloo": gloo,
    }
    pairs = {name: Pair(way, megabytes, folder / str(i)) for i, (name, way) in enumerate(ways.items())}
    try:
        seconds: dict[str, list[float]] = {name: [] for name in pairs}
        for turn in range(turns + 2):
            for name, pair in pairs.items():
                taken = pair.exchange()
                if turn >= 2:  # the first ones warm up
                    seconds[name].append(taken)
        return seconds
    finally:
        for pair in pairs.values():
            pair.close()


class Pair:
    """Two processes that exchange in one way."""

    def __init__(self, way: Way, megabytes: int, folder: Path) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        self._ends: list[Connection] = []
        self._processes = []
        for number in range(2):
            here, there = context.Pipe()
            own = (there, way, number, megabytes, folder / str(number), port)
            process = context.Process(target=serve, args=own, daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)
        for end in self._ends:
            assert end.recv() == "ready"

    def exchange(self) -> float:
        start = time.perf_counter()
        for end in self._ends:
            end.send("go")
        for end in self._ends:
            assert end.recv() == "done"
        return time.perf_counter() - start

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def serve(pipe: Connection, way: Way, number: int, megabytes: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    exchange = way(number, megabytes, folder, port)
    exchange()
    pipe.send("ready")
    while pipe.recv() == "go":
        exchange()
        pipe.send("done")


def peers(number: int, megabytes: int, folder: Path, port: int) -> Exchange:
    """Pull and push with the peers' own homes and network."""
    folder.mkdir(parents=True)
    (folder / "preset.toml").write_text(PRESET.format(hidden=HIDDEN[megabytes]))
    config = load(str(folder / "preset.toml"))
    task = task_of(config, number, own_data=False)
    peer = Peer(task, config, config.peers, number, 2, folder, link(number, port), print)
    stock = peer.stock
    network = Network(
        configuration(link(number, port), str(number), "bench", 10.0),
        "bench",
        task.fingerprint,
        peer.board,
        stock.home.serve,
    )
    other, version = 1 - number, stock.course.version
    own, theirs = stock.course.windows(version, number), stock.course.windows(version, other)
    assert own is not None
    assert theirs is not None
    values = peer.pull.room(own)
    shards = range(len(stock.layout))

    def pull() -> None:
        places = {s: stock.home.handed(Contribution(number, own, values, 1.0), s) for s in shards}
        fetch({s: f"values/{version.text}/{s}/{number}" for s in shards}, places)

    rooms = {s: stock.home.room(s, theirs) for s in shards}

    def push() -> None:
        fetch({s: f"given/own/{s}" for s in shards}, rooms)
        stock.home.clear()  # what was cut for the other; it is cut anew in every round

    def fetch(paths: dict[int, str], places: dict[int, list[Tensor]]) -> None:
        network.fetch([Wanted(lambda: [other], paths[s], Strip(places[s])) for s in shards], lambda: True)

    def exchange() -> None:
        pull()
        push()

    stock.home.offer("own", Contribution(number, own, {n: v.clone() for n, v in values.items()}, 1.0))
    return exchange


def bare(number: int, megabytes: int, folder: Path, port: int, piece: int | None) -> Exchange:
    """Gets of bytes that lie ready."""
    engine = zenoh()
    session = engine.open(engine.Config.from_json5(configuration(link(number, port), "", "bench", 10.0)))
    total = megabytes * 10**6
    sizes = [min(piece or total, total - at) for at in range(0, total, piece or total)]
    ready = {size: os.urandom(size) for size in sizes}
    asked = session.declare_queryable(f"bench/{number}/*", engine.handlers.FifoChannel(256))

    def answer() -> None:
        for query in asked:
            with query:
                query.reply(query.key_expr, ready[int(str(query.key_expr).rpartition("/")[2])])

    for _ in range(3):
        threading.Thread(target=answer, daemon=True).start()
    replies: queue.SimpleQueue[int] = queue.SimpleQueue()
    handler = engine.handlers.Callback(
        lambda reply: replies.put(len(reply.ok.payload.to_bytes())), indirect=False
    )

    def ask(size: int) -> None:
        session.get(f"bench/{1 - number}/{size}", handler, timeout=60.0)

    def exchange() -> None:
        for _ in range(2):
            waiting, got = list(sizes), 0
            for size in waiting[:FLYING]:
                ask(size)
            rest = iter(waiting[FLYING:])
            while got < total:
                got += replies.get(timeout=30)
                if (more := next(rest, None)) is not None:
                    ask(more)

    time.sleep(3.0)  # until both have found each other
    return exchange


def gloo(number: int, megabytes: int, folder: Path, port: int) -> Exchange:
    """Batched point-to-point operations of torch.distributed."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    out, into = torch.rand(megabytes * 250_000), torch.empty(megabytes * 250_000)

    def exchange() -> None:
        for _ in range(2):
            works = distributed.batch_isend_irecv(
                [
                    distributed.P2POp(distributed.isend, out, 1 - number),
                    distributed.P2POp(distributed.irecv, into, 1 - number),
                ]
            )
            for work in works:
                work.wait()

    return exchange


def link(number: int, port: int) -> Link:
    address = f"127.0.0.1:{port}"
    return Link(connect=[address] if number else [], listen=["127.0.0.1:0" if number else address])


if __name__ == "__main__":
    main()
