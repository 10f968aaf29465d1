"""A participant: trains its sub-model where its data lie.

Flower starts a new process for every message, so what it keeps between rounds lies on disk.
"""

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import Dataset

from msfusion.errors import UserError
from msfusion.flower.agreed import Agreed, agree
from msfusion.flower.task import Settings, Task, capacity_of, settings_of
from msfusion.flower.wire import Answer, Hello, Order, refusal
from msfusion.runtimes import checkpoint
from msfusion.runtimes.kept import Kept
from msfusion.runtimes.setup import device_of
from msfusion.runtimes.simulation import torch_threads

_OVER = 30 * 86400.0  # seconds without a round after which a run counts as over


def client_app(task: Task) -> ClientApp:
    """The app that a SuperNode runs. Its node configuration says which participant it is (``partition-id``),
    and may say what it can afford (one of ``width``, ``share``, ``memory`` and ``flops``), name its
    ``device``, and the folder where it keeps ``state``."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _hello(task, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _train(task, message.content, context))

    return app


def _answered(message: Message, context: Context, answer: Callable[[], RecordDict]) -> Message:
    try:
        content = answer()
    except UserError as error:
        number = context.node_config.get("partition-id")
        content = refusal(error, number if type(number) is int else None)
    return Message(content, reply_to=message)


def _hello(task: Task, context: Context) -> RecordDict:
    settings = settings_of(context.run_config)
    number = number_of(context.node_config, settings.participants)
    data = _data(task, settings, number, context.node_config)
    remove_old(state_folder(context.node_config))
    capacity = capacity_of(context.node_config)
    meaning = task.meaning(settings, number, Node(context.node_config)) if task.meaning else None
    if not isinstance(meaning, str | None):
        raise UserError(
            f"expected meaning(...) in task.py to return a text, got {type(meaning).__name__}: join names, "
            "for example with line breaks"
        )
    known = None if meaning is None else checkpoint.fingerprint(meaning)
    return Hello(number, len(data), capacity, known).record()  # type: ignore[arg-type]


def _train(task: Task, content: RecordDict, context: Context) -> RecordDict:
    settings, node = settings_of(context.run_config), context.node_config
    number = number_of(node, settings.participants)
    order, values = Order.read(content)
    device = device_of(str(node.get("device", settings.device)))
    agreed = agree(task, context.run_config, device, order.capacities)
    _check(agreed, order)
    setup = agreed.setup
    learner = setup.learner(order.overlap)
    participant = setup.participant(number, _data(task, settings, number, node))
    windows = learner.windows(order.round, participant)
    if not re.fullmatch("[0-9a-f]{32}", order.run):  # it names a folder
        raise UserError(f"expected 32 hexadecimal digits that name the run, got {order.run!r}")
    folder = state_folder(node) / order.run / f"participant-{number}"
    kept = Kept(folder, number, device) if learner.remembers else None
    previous = kept.before(order.round) if kept else None
    values = {name: value.to(device) for name, value in values.items()}
    with torch_threads(settings.threads):
        contribution, loss, memory = learner.train(
            order.round, participant, windows, values, previous, lend=True
        )
    if kept and memory is not None:
        kept.keep(order.round, memory)
    answer = Answer(participant.examples, loss, previous is None, participant.seen)
    return answer.record(contribution.values)


class _Missing(UserError, KeyError):
    """Something that task.py looks up in the node configuration and that is not there."""

    __str__ = Exception.__str__


class Node(dict[str, Any]):
    """A node configuration, which tells the user what it lacks."""

    def __missing__(self, key: str) -> Any:
        raise _Missing(
            f"expected {key!r} in the node configuration, which task.py reads, got none: start the SuperNode "
            f"with --node-config '... {key}=\"...\"'"
        )


def _data(task: Task, settings: Settings, number: int, node: Mapping[str, Any]) -> Dataset[Any]:
    """The examples of a participant; UserError where there are none."""
    data = task.data(settings, number, Node(node))
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UserError(
            f"expected data(...) in task.py to return a dataset with a length and an index for participant "
            f"{number}, got {type(data).__name__}"
        )
    if not len(data):
        raise UserError(f"expected data for participant {number}, got none: give it some, or leave it out")
    return data


def number_of(node: Mapping[str, Any], participants: int) -> int:
    """Which participant a SuperNode is."""
    number = node.get("partition-id")
    if type(number) is not int or not 0 <= number < participants:  # nor a bool
        raise UserError(
            f"expected the participant's number, 0 to {participants - 1}, as partition-id in the node "
            f"configuration, got {number!r}: start the SuperNode with --node-config 'partition-id=0'"
        )
    return number


def _check(agreed: Agreed, order: Order) -> None:
    if agreed.key != order.key:
        raise UserError(
            "expected the server side's model and settings, got others from the same app: "
            "install the same versions of msfusion and torch at both sides"
        )


def state_folder(node: Mapping[str, Any]) -> Path:
    """Where a SuperNode keeps what lasts from one message to the next."""
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return Path(str(node.get("state") or home / "msfusion"))


def remove_old(state: Path) -> None:
    """Remove what participants remember of runs in which none of them has trained for 30 days: files and
    folders with the names that ``_train`` and ``Kept`` give them, and no others."""
    for run in state.glob("[0-9a-f]" * 32):
        files = [*run.glob("participant-*/[0-9]*.safetensors"), *run.glob("participant-*/[0-9]*.draft")]
        with suppress(OSError):  # another SuperNode is at it as well, or something else is in it
            if max((file.stat().st_mtime for file in files), default=math.inf) > time.time() - _OVER:
                continue
            for file in files:
                file.unlink()
            for folder in {file.parent for file in files}:
                folder.rmdir()
            run.rmdir()
