"""Flower's own link state and grid in this process; nodes answer one after the other in a thread."""

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_INTERVAL_INF, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.task_pb2 import Task as FlowerTask
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState, RunRecord
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from msfusion.flower import Task, client_app
from msfusion.flower.server import Hub

RUN, TASK = 7, 1

Behaviour = Callable[[Message, Context, ClientApp], list[Message]]
"""What a node answers: usually one message."""


def honest(message: Message, context: Context, app: ClientApp) -> list[Message]:
    try:
        return [app(message, context)]
    except Exception as error:  # as Flower's own workers do
        reason = f"{type(error)}:<'{error}'>"
        return [Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)]


@dataclass
class Node:
    """A SuperNode: its configuration, and how it behaves."""

    config: dict[str, Any]
    behaviour: Behaviour = honest
    number: int = 0
    asked: list[Message] = field(default_factory=list)


class Nodes:
    """SuperNodes that are connected to a link state of their own."""

    def __init__(self, app: ClientApp, nodes: list[Node]) -> None:
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        self.state: InMemoryLinkState = factory.state()  # type: ignore[assignment]
        run = Run.create_empty(RUN)
        run.federation_id, run.primary_task_id = NOOP_FEDERATION_ID, TASK
        self.state.run_ids[RUN] = RunRecord(run=run)
        self.state.task_store[TASK] = FlowerTask(task_id=TASK, run_id=RUN)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, TASK, SUPERLINK_NODE_ID
        self.grid: Grid = InMemoryGrid(factory)
        self.grid.set_run(run)
        self.app, self.nodes = app, nodes
        self.run_config: dict[str, Any] = {}
        for node in nodes:
            key = uuid.uuid4().bytes
            node.number = self.state.create_node("", "", key, heartbeat_interval=HEARTBEAT_INTERVAL_INF)
            self.up(node)

    def up(self, node: Node) -> None:
        assert self.state.activate_node(node.number, HEARTBEAT_INTERVAL_INF)

    def down(self, node: Node) -> None:
        assert self.state.deactivate_node(node.number)

    @contextmanager
    def answering(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._answer, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _answer(self, stop: threading.Event) -> None:
        while not stop.wait(0.01):
            for node in self.nodes:
                for message in self.state.get_message_ins(node.number, limit=1):
                    self._reply(node, message)

    def _reply(self, node: Node, message: Message) -> None:
        node.asked.append(message)
        context = Context(RUN, node.number, node.config, RecordDict(), self.run_config)
        for reply in node.behaviour(message, context, self.app):
            reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self.state.store_message_res(reply)


def nodes_of(task: Task, participants: int, folder: Path, behave: Mapping[int, Behaviour] = {}) -> Nodes:
    """A SuperNode for each participant."""
    nodes = [
        Node({"partition-id": i, "state": str(folder / "state")}, behave.get(i, honest))
        for i in range(participants)
    ]
    return Nodes(client_app(task), nodes)


def play(task: Task, nodes: Nodes, run_config: Mapping[str, Any]) -> Hub:
    """Run the server side against the nodes to its end."""
    nodes.run_config = dict(run_config)
    with nodes.answering():
        hub = Hub(task, nodes.grid, run_config)
        hub.run()
    return hub
