"""What travels in Flower's messages.

Tensors go as one buffer in the safetensors format: a model of a hundred tensors would otherwise be two
hundred objects with a request each. Nothing is unpickled.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors.torch import load, save
from torch import Tensor

from msfusion.core.axes import Units
from msfusion.core.overlap import State
from msfusion.errors import UserError
from msfusion.flower.task import capacity_of
from msfusion.learn.capacity import Capacity

_FORMAT = "safetensors"
_MOST = 500  # characters of a reason


def shown(text: str) -> str:
    """What came from elsewhere, as it may stand in logs and records: one line of no great length."""
    line = "".join(c if c.isprintable() else " " for c in text[:_MOST])
    return line if len(text) <= _MOST else f"{line} ..."


def packed(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as one buffer."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return ArrayRecord({"values": Array("uint8", (len(data),), _FORMAT, data)})


def unpacked(data: bytes) -> dict[str, Tensor]:
    """The tensors in a buffer; UserError where it is none."""
    try:
        return load(data)
    except Exception as error:  # safetensors and torch have no common one for a header that makes no sense
        raise UserError(f"expected tensors in the safetensors format, cannot read them: {error}") from None


@dataclass(frozen=True)
class Hello:
    """What a participant says of itself when it is first seen.

    number: which participant it is.
    capacity: what it can afford, if it says so.
    meaning: hash of what its labels or tokens stand for, where the app knows that.
    """

    number: int
    examples: int
    capacity: Capacity | None = None
    meaning: str | None = None

    def record(self) -> RecordDict:
        stated = asdict(self.capacity) if self.capacity else {}
        facts = {
            "participant": self.number,
            "examples": self.examples,
            "meaning": self.meaning,
            **stated,
        }
        return RecordDict({"hello": ConfigRecord({k: v for k, v in facts.items() if v is not None})})

    @staticmethod
    def read(content: RecordDict) -> "Hello":
        """UserError where the answer is not a hello, or a refusal."""
        table = _table(content, "hello")
        meaning = table.get("meaning")
        return Hello(
            _whole(table, "participant", 0),
            _whole(table, "examples", 1),
            capacity_of(table),
            None if meaning is None else str(meaning),
        )


@dataclass(frozen=True)
class Order:
    """What the server side asks a participant to do in a round; the windows follow from it.

    run: names the training; state that a participant keeps belongs to it.
    key: of what both sides must agree on.
    capacities: of every participant, where the settings do not say it; the narrowest windows concern all.
    """

    run: str
    key: str
    round: int
    overlap: State
    capacities: tuple[Capacity, ...]

    def record(self, values: Mapping[str, Tensor]) -> RecordDict:
        """values: those of the sub-model."""
        facts = ConfigRecord(
            {
                "run": self.run,
                "key": self.key,
                "round": self.round,
                "overlap": self.overlap.rate,
                "since": self.overlap.since,
                "capacities": json.dumps([asdict(capacity) for capacity in self.capacities]),
            }
        )
        return RecordDict({"order": facts, "model": packed(values)})

    @staticmethod
    def read(content: RecordDict) -> "tuple[Order, dict[str, Tensor]]":
        table: Any = content["order"]
        overlap = State(float(table["overlap"]), int(table["since"]))
        capacities = tuple(Capacity(**stated) for stated in json.loads(table["capacities"]))
        order = Order(str(table["run"]), str(table["key"]), int(table["round"]), overlap, capacities)
        return order, unpacked(_buffer(content, "model"))


@dataclass(frozen=True)
class Answer:
    """What a participant hands back beside its values.

    first: it remembered nothing, so that the contrastive loss had no previous model.
    seen: labels that it has seen, where rows of the head for others are left out.
    """

    examples: int
    loss: float
    first: bool
    seen: Units | None

    def record(self, values: Mapping[str, Tensor]) -> RecordDict:
        """values: the trained parameters of the sub-model."""
        metrics = MetricRecord({"num-examples": self.examples, "train_loss": self.loss})
        facts = ConfigRecord({"first": self.first})
        if self.seen is not None:
            facts["seen"] = [place for run in self.seen for place in run]
        return RecordDict({"answer": facts, "metrics": metrics, "contribution": packed(values)})

    @staticmethod
    def read(content: RecordDict) -> "tuple[Answer, bytes]":
        """The answer and its values as they came; UserError where it is none, or a refusal."""
        table, metrics = _table(content, "answer"), _table(content, "metrics")
        loss = metrics.get("train_loss")
        if not isinstance(loss, float) or not math.isfinite(loss):
            raise UserError(f"expected a finite training loss in the answer, got {loss!r}")
        answer = Answer(
            _whole(metrics, "num-examples", 1), loss, bool(table.get("first")), _runs(table.get("seen"))
        )
        return answer, _buffer(content, "contribution")


def refusal(error: UserError, number: int | None) -> RecordDict:
    """What a participant answers that cannot do what it is asked; its number, if it knows that."""
    facts = ConfigRecord({"reason": str(error)})
    if number is not None:
        facts["participant"] = number
    return RecordDict({"refusal": facts})


def named_in(content: RecordDict) -> int | None:
    """The participant that says hello, or refuses; None where it does not say which."""
    records = content.config_records
    said: Any = records.get("refusal") or records.get("hello")
    number = said and said.get("participant")
    return number if type(number) is int else None


def _table(content: RecordDict, name: str) -> dict[str, Any]:
    if "refusal" in content.config_records:
        raise UserError(str(content.config_records["refusal"].get("reason")))
    found: Any = content.config_records.get(name) or content.metric_records.get(name)
    if found is None:
        raise UserError(f"expected {name!r} in the answer, got {', '.join(content) or 'nothing'}")
    return dict(found)


def _whole(table: Mapping[str, Any], name: str, least: int) -> int:
    value = table.get(name)
    if type(value) is not int or not least <= value <= 2**53:  # nor a bool
        raise UserError(f"expected {name} from {least} to 2^53 in the answer, got {value!r}")
    return value


def _runs(places: Any) -> Units | None:
    if places is None:
        return None
    if not isinstance(places, list) or len(places) % 2 or not all(isinstance(p, int) for p in places):
        raise UserError(f"expected runs of labels in the answer, got {places!r}")
    return tuple(zip(places[::2], places[1::2], strict=True))


def _buffer(content: RecordDict, name: str) -> bytes:
    record = content.array_records.get(name)
    array = record and record.get("values")
    if not array or array.stype != _FORMAT:
        raise UserError(f"expected {name!r} with tensors in the safetensors format, found none")
    return array.data
