"""Whatever a participant does, the round goes on with the others, and the record says who and why."""

import json
import math
import re
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from inline import Behaviour, Node, Nodes, honest, nodes_of, play
from points import CONFIG, TASK, alone, data, model, points, rounds, same, stored
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from msfusion.errors import UserError
from msfusion.flower import Settings, Task, client_app, server, server_app
from msfusion.flower.client import number_of
from msfusion.flower.exchange import ask
from msfusion.flower.roll import Roll
from msfusion.flower.task import Waiting
from msfusion.flower.wire import packed, shown, unpacked
from msfusion.learn.objective import Objective

BRIEF = {"waiting.deadline": 8.0}
"""For tests of silence alone: a machine that stands still for longer than this fails them."""

FAULTY, ROUND = 1, 1
"""The participant and the round that faults happen in."""

ALL, OTHERS = frozenset({0, 1, 2}), frozenset({0, 2})


def in_the_round(message: Message) -> bool:
    order = message.content.config_records.get("order")
    return order is not None and order["round"] == ROUND


def changed(change: Callable[[RecordDict], None]) -> Behaviour:
    """Answers with a changed content."""

    def behave(message: Message, context: Context, app: ClientApp) -> list[Message]:
        replies = honest(message, context, app)
        if in_the_round(message):
            change(replies[0].content)
        return replies

    return behave


def other_values(change: Callable[[dict[str, Tensor]], None]) -> Behaviour:
    def swap(content: RecordDict) -> None:
        values = unpacked(content.array_records["contribution"]["values"].data)
        change(values)
        content["contribution"] = packed(values)

    return changed(swap)


def raises(message: Message, context: Context, app: ClientApp) -> list[Message]:
    def broken(*_: Any) -> Message:
        raise ZeroDivisionError("out of luck")

    return honest(message, context, broken if in_the_round(message) else app)  # type: ignore[arg-type]


def silent(message: Message, context: Context, app: ClientApp) -> list[Message]:
    return [] if in_the_round(message) else honest(message, context, app)


def garbage(content: RecordDict) -> None:
    content["contribution"] = ArrayRecord({"values": Array("uint8", (3,), "safetensors", b"\x80\x04.")})


def impossible(size: int) -> Callable[[RecordDict], None]:
    """A tensor without elements whose shape no tensor can have."""
    header = {"a": {"dtype": "F32", "shape": [0, size, size], "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text
    return lambda content: content.update(
        {"contribution": ArrayRecord({"values": Array("uint8", (len(data),), "safetensors", data)})}
    )


def pickled(content: RecordDict) -> None:
    content["contribution"] = ArrayRecord({"values": Array("uint8", (3,), "pickle", b"\x80\x04.")})


FAULTS: dict[str, tuple[Behaviour, str]] = {
    "an exception": (raises, "out of luck"),
    "no answer": (silent, "no answer within 8 s"),
    "NaN": (other_values(lambda v: v["head.bias"].fill_(torch.nan)), "NaN or infinity in head.bias"),
    "a large change": (
        other_values(lambda v: v["head.bias"].fill_(1e4)),
        "times as large as the others'",
    ),
    "more than was sent": (
        other_values(lambda v: v.update({"more": torch.zeros(10_000)})),
        "bytes that were sent, got",
    ),
    "another shape": (
        other_values(lambda v: v.update({"first.weight": v["first.weight"][:2].clone()})),
        "expected first.weight of shape",
    ),
    "another type": (
        other_values(lambda v: v.update({"head.bias": v["head.bias"].double()})),
        "expected head.bias of type torch.float32, got torch.float64",
    ),
    "a tensor too few": (other_values(lambda v: v.pop("head.bias")), "none named 'head.bias'"),
    "a tensor too many": (
        other_values(lambda v: v.update({"more": torch.zeros(1)})),
        "got another one, 'more'",
    ),
    "garbage": (changed(garbage), "cannot read them"),
    "strides beyond 64 bits": (changed(impossible(2**62)), "cannot read them"),
    "a size beyond 64 bits": (changed(impossible(2**63)), "cannot read them"),
    "another format": (changed(pickled), "found none"),
    "nothing": (changed(lambda content: content.clear()), "expected 'answer' in the answer, got nothing"),
    "no loss": (
        changed(lambda content: content["metrics"].update({"train_loss": math.nan})),
        "expected a finite training loss in the answer, got nan",
    ),
    "no examples": (
        changed(lambda content: content["metrics"].update({"num-examples": 0})),
        "expected num-examples from 1 to 2^53 in the answer, got 0",
    ),
    "examples beyond what a dataset can have": (
        changed(lambda content: content["metrics"].update({"num-examples": 2**64 - 1})),
        "expected num-examples from 1 to 2^53 in the answer, got 18446744073709551615",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_round_goes_on_without_the_faulty_answer(fault: str, tmp_path: Path) -> None:
    behaviour, reason = FAULTS[fault]
    nodes = nodes_of(TASK, 3, tmp_path, {FAULTY: behaviour})
    deadline = BRIEF if behaviour is silent else {}
    play(TASK, nodes, {**CONFIG, **deadline, "out": str(tmp_path / "run")})
    first, second, third = rounds(tmp_path / "run")
    assert first["participants"] == third["participants"] == [0, 1, 2]
    assert first["dropped"] == third["dropped"] == []
    assert second["participants"] == [0, 2]
    assert [one["participant"] for one in second["dropped"]] == [FAULTY]
    assert reason in second["dropped"][0]["reason"]
    assert same(stored(tmp_path / "run"), alone(ALL, OTHERS, ALL))


@pytest.mark.parametrize("seen", [None, [], [0, 4], [-1, 2], [2, 1], [0, 1, 1, 2]])
def test_labels_that_cannot_have_been_seen_are_refused(seen: list[int] | None, tmp_path: Path) -> None:
    def says_so(content: RecordDict) -> None:
        facts = content.config_records["answer"]
        del facts["seen"]
        if seen is not None:
            facts["seen"] = seen

    nodes = nodes_of(TASK, 3, tmp_path, {FAULTY: changed(says_so)})
    play(TASK, nodes, {**CONFIG, "mask_unseen": True, "rounds": 2, "out": str(tmp_path / "run")})
    second = rounds(tmp_path / "run")[ROUND]
    assert second["participants"] == [0, 2]
    assert "expected the labels seen, as runs from 0 to 3, got" in second["dropped"][0]["reason"]


@pytest.mark.parametrize("more", [{}, {"server_momentum": 0.5}])
def test_values_that_a_merge_would_make_infinite_are_not_kept(more: dict[str, Any], tmp_path: Path) -> None:
    """With one other there is nothing to compare a change with."""
    nodes = nodes_of(TASK, 2, tmp_path, {1: other_values(lambda v: v["head.bias"].fill_(3e38))})
    config = {**CONFIG, **more, "participants": 2, "out": str(tmp_path / "run")}
    play(TASK, nodes, config)
    found = rounds(tmp_path / "run")
    assert [r["participants"] for r in found] == [[0, 1], [0], [0, 1]]
    assert found[1]["dropped"] == [
        {
            "participant": 1,
            "reason": "expected merged values that are finite, got NaN or infinity in head.bias, and this "
            "change weighed the most",
        }
    ]
    if not more:
        both, one = frozenset({0, 1}), frozenset({0})
        assert same(stored(tmp_path / "run"), alone(both, one, both, participants=2))
    assert all(value.isfinite().all() for value in stored(tmp_path / "run").values())


def test_a_participant_with_one_example_is_left_out_where_there_is_batch_norm(tmp_path: Path) -> None:
    def few(settings: Settings, participant: int, node: Any) -> TensorDataset:
        return points(1, 0) if participant == FAULTY else data(settings, participant, node)

    task = Task(model, few)
    play(task, nodes_of(task, 3, tmp_path), {**CONFIG, "out": str(tmp_path / "run")})
    for found in rounds(tmp_path / "run"):
        assert found["participants"] == [0, 2]
        (dropped,) = found["dropped"]
        assert "expected batches of at least 2 examples" in dropped["reason"]
    assert same(stored(tmp_path / "run"), alone(OTHERS, OTHERS, OTHERS))


def test_a_run_in_which_nobody_could_train_does_not_begin(tmp_path: Path) -> None:
    task = Task(model, lambda settings, participant, node: points(1, participant))
    with pytest.raises(UserError, match="participant 0, as all others: expected batches of at least 2"):
        play(task, nodes_of(task, 3, tmp_path), {**CONFIG, "out": str(tmp_path / "run")})
    done = {**CONFIG, "out": str(tmp_path / "run")}
    play(TASK, nodes_of(TASK, 3, tmp_path), done)
    assert len(rounds(tmp_path / "run")) == 3


def test_the_second_of_two_answers_is_refused(tmp_path: Path) -> None:
    def twice(message: Message, context: Context, app: ClientApp) -> list[Message]:
        return [reply for _ in range(2) for reply in honest(message, context, app)]

    nodes = nodes_of(TASK, 3, tmp_path, {FAULTY: twice})
    play(TASK, nodes, {**CONFIG, "out": str(tmp_path / "run")})
    assert all(r["participants"] == [0, 1, 2] for r in rounds(tmp_path / "run"))
    assert same(stored(tmp_path / "run"), alone(ALL, ALL, ALL))


def test_who_answers_twice_is_merged_and_not_called_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both answers have come when somebody looks."""

    def twice(*args: Any) -> Iterator[tuple[int, Message | str]]:
        return (one for one in ask(*args) for _ in range(1 + (one[0] == FAULTY)))

    monkeypatch.setattr(server, "ask", twice)
    play(TASK, nodes_of(TASK, 3, tmp_path), {**CONFIG, "rounds": 1, "out": str(tmp_path / "run")})
    (found,) = rounds(tmp_path / "run")
    assert (found["participants"], found["dropped"]) == ([0, 1, 2], [])
    assert f"a second answer of participant {FAULTY}: answered twice" in caplog.text


def test_the_log_counts_rounds_as_the_reasons_in_it_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * torch.nan

    task = Task(model, data, lost)
    with pytest.raises(UserError, match=r"round 0, participant 0: .*; mend that, .* goes on with round 0$"):
        play(task, nodes_of(task, 3, tmp_path), {**CONFIG, "out": str(tmp_path / "run")})
    play(TASK, nodes_of(TASK, 3, tmp_path), {**CONFIG, "rounds": 1, "out": str(tmp_path / "run")})
    assert "round 0, 1 of 1 done: 3 participants" in caplog.text


def test_a_second_node_of_a_participant_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [Node({"partition-id": i}) for i in (0, 1, 1, 2)]
    play(TASK, Nodes(client_app(TASK), nodes), {**CONFIG, "out": str(tmp_path / "run")})
    assert all((r["participants"], r["dropped"]) == ([0, 1, 2], []) for r in rounds(tmp_path / "run"))
    assert caplog.text.count("says that it is participant 1: left out") == 1
    assert same(stored(tmp_path / "run"), alone(ALL, ALL, ALL))


@pytest.mark.parametrize("late", [[2], [0, 1]])
def test_a_participant_with_other_classes_is_not_let_in(late: list[int], tmp_path: Path) -> None:
    """Whoever comes first, most are right."""

    def classes(settings: Settings, participant: int, node: Any) -> str:
        return "dog cat bird" if participant == 2 else "cat dog bird"

    nodes = nodes_of(Task(model, data, meaning=classes), 3, tmp_path, dict.fromkeys(late, slow))
    config = {**CONFIG, "waiting.patience": 1.0, "rounds": 2, "out": str(tmp_path / "run")}
    play(Task(model, data, meaning=classes), nodes, config)
    for found in rounds(tmp_path / "run"):
        assert found["participants"] == [0, 1]
        (dropped,) = found["dropped"]
        assert "expected labels or tokens that stand for what they do at participant" in dropped["reason"]


@pytest.mark.parametrize("number", [True, False, -1, 1.0, 0.5, "1", None])
def test_what_is_no_number_of_a_participant_is_refused(number: object) -> None:
    with pytest.raises(UserError, match=rf"expected the participant's number, 0 to 2, .*got {number!r}"):
        number_of({"partition-id": number}, 3)


def lies(message: Message, context: Context, app: ClientApp) -> list[Message]:
    replies = honest(message, context, app)
    replies[0].content["hello"]["participant"] = 3  # type: ignore[index]
    return replies


@pytest.mark.parametrize(
    ("node", "reason", "absent"),
    [
        (Node({"partition-id": 3}), "expected the participant's number, 0 to 2", "not connected"),
        (Node({}), "expected the participant's number, 0 to 2", "not connected, or SuperNode"),
        (Node({"partition-id": 2}, lies), "expected a partition-id below 3, got 3", "not connected"),
    ],
)
def test_strangers_take_no_part(node: Node, reason: str, absent: str, tmp_path: Path, caplog: Any) -> None:
    nodes = [Node({"partition-id": 0}), Node({"partition-id": 1}), node]
    play(
        TASK,
        Nodes(client_app(TASK), nodes),
        {**CONFIG, "waiting.patience": 1.0, "out": str(tmp_path / "run")},
    )
    assert reason in caplog.text
    assert all(r["participants"] == [0, 1] for r in rounds(tmp_path / "run"))
    (dropped,) = rounds(tmp_path / "run")[0]["dropped"]
    assert dropped["participant"] == 2
    assert dropped["reason"].partition(absent)[0] == ""
    assert (reason in dropped["reason"]) is (absent != "not connected")


HELLOS: dict[str, tuple[dict[str, Any], str]] = {
    "bytes beyond counting": ({"memory": "9" * 400}, "expected fewer bytes than 8 EiB"),
    "several shares": ({"share": [0.5, 0.1]}, "expected one value for share"),
    "a share of nothing": ({"share": 1e-4}, "expected"),
    "a width of nothing": ({"width": 1e-300}, "expected a width that leaves at least one unit"),
    "a byte": ({"memory": "1B"}, "expected"),
    "no share": ({"share": []}, "expected one value for share"),
}


def test_what_others_say_is_shown_as_one_short_line() -> None:
    assert shown("a\x1b[2J\nb") == "a [2J b"
    assert shown("a" * 500) == "a" * 500
    assert shown("a" * 30_000) == "a" * 500 + " ..."


def test_who_is_slow_to_say_hello_is_not_called_absent(tmp_path: Path) -> None:
    def late(message: Message, context: Context, app: ClientApp) -> list[Message]:
        threading.Event().wait(4.0 * (message.metadata.message_type == "query"))
        return honest(message, context, app)

    config = {**CONFIG, "rounds": 1, "waiting.patience": 0.5, "out": str(tmp_path / "run")}
    play(TASK, nodes_of(TASK, 3, tmp_path, {2: late}), config)
    (found,) = rounds(tmp_path / "run")
    (dropped,) = found["dropped"]
    assert re.fullmatch(r"not connected, or SuperNode \d+, which has not said .*", dropped["reason"])


def net_alone(settings: Settings) -> Any:
    return model(settings)[0]


def example_alone(settings: Settings) -> Any:
    return model(settings)[0], torch.zeros(2, 5)


@pytest.mark.parametrize(("made", "got"), [(net_alone, "got Net"), (example_alone, "got Net, Tensor")])
def test_a_model_without_example_inputs_is_refused(made: Any, got: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"return a module and a tuple of tensors, .*{got}$"):
        play(Task(made, data), nodes_of(TASK, 3, tmp_path), {**CONFIG, "out": str(tmp_path / "run")})


def test_a_task_takes_a_plain_loss_function() -> None:
    assert Task(model, data, F.mse_loss).objective == Objective(F.mse_loss)  # type: ignore[arg-type]
    for wrong in (nn.CrossEntropyLoss, "mse"):
        with pytest.raises(UserError, match="expected the objective of a Task"):
            Task(model, data, wrong)  # type: ignore[arg-type]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "meaning": ({"meaning": lambda s, i, n: ["a", "b"]}, "to return a text, got list"),
    "node": ({"data": lambda s, i, n: n["scans"]}, "expected 'scans' in the node configuration"),
    "no dataset": ({"data": lambda s, i, n: None}, "for participant 1, got NoneType"),
    "no data": ({"data": lambda s, i, n: []}, "expected data for participant 1, got none"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_task_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    changes, reason = MISTAKES[mistake]
    task = Task(**{"model": model, "data": data, **changes})
    message = Message(RecordDict(), 1, "query")
    context = Context(1, 1, {"partition-id": 1, "state": str(tmp_path)}, RecordDict(), dict(CONFIG))
    refusal = client_app(task)(message, context).content.config_records["refusal"]
    assert reason in str(refusal["reason"])


def test_a_run_that_has_no_name_of_a_run_writes_nothing(tmp_path: Path) -> None:
    def elsewhere(message: Message, context: Context, app: ClientApp) -> list[Message]:
        if in_the_round(message):
            message.content.config_records["order"]["run"] = str(tmp_path / "mine")
        return honest(message, context, app)

    config = {**CONFIG, "contrast.weight": 1.0, "rounds": 2, "out": str(tmp_path / "run")}
    play(TASK, nodes_of(TASK, 3, tmp_path, {FAULTY: elsewhere}), config)
    assert "expected 32 hexadecimal digits" in rounds(tmp_path / "run")[ROUND]["dropped"][0]["reason"]
    assert not (tmp_path / "mine").exists()


def test_an_error_of_the_user_ends_the_server_side_without_our_lines(tmp_path: Path) -> None:
    context = Context(1, 1, {}, RecordDict(), {**CONFIG, "rounds": 0})
    with pytest.raises(UserError) as caught:
        server_app(TASK)(nodes_of(TASK, 3, tmp_path).grid, context)
    assert caught.value.__suppress_context__
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-1] == "main"


def says(stated: dict[str, Any]) -> Behaviour:
    """A hello with other facts in it."""

    def behave(message: Message, context: Context, app: ClientApp) -> list[Message]:
        replies = honest(message, context, app)
        if message.metadata.message_type == "query":
            replies[0].content["hello"].update(stated)  # type: ignore[union-attr]
        return replies

    return behave


@pytest.mark.parametrize("hello", HELLOS)
def test_who_says_nonsense_of_itself_is_refused_alone(hello: str, tmp_path: Path) -> None:
    stated, reason = HELLOS[hello]
    nodes = nodes_of(TASK, 3, tmp_path, {FAULTY: says(stated)})
    config = {**CONFIG, "rounds": 1, "waiting.patience": 0.5, "out": str(tmp_path / "run")}
    play(TASK, nodes, config)
    (found,) = rounds(tmp_path / "run")
    assert found["participants"] == [0, 2]
    (dropped,) = found["dropped"]
    assert dropped["participant"] == FAULTY
    assert dropped["reason"].startswith(reason)


@pytest.mark.parametrize(("width", "joins"), [(0.25, False), (0.5, True), (0.75, True)])
def test_a_latecomer_takes_part_if_it_can_afford_what_was_settled(
    width: float, joins: bool, tmp_path: Path
) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    late = nodes.nodes[2]
    late.config["width"] = width
    nodes.down(late)

    def wakes(message: Message, context: Context, app: ClientApp) -> list[Message]:
        if in_the_round(message):
            nodes.up(late)
            threading.Event().wait(0.1)
        return honest(message, context, app)

    nodes.nodes[0].behaviour = wakes
    play(TASK, nodes, {**CONFIG, "waiting.patience": 0.5, "out": str(tmp_path / "run")})
    assert [r["participants"] for r in rounds(tmp_path / "run")] == [[0, 1], [0, 1], [0, 1, 2][: 2 + joins]]
    assert same(stored(tmp_path / "run"), alone(*[frozenset({0, 1})] * 2, frozenset(range(2 + joins))))


def unready(until: Callable[[], bool]) -> Behaviour:
    """Fails when it is asked who it is, until something is true."""

    def broken(*_: Any) -> Message:
        raise ZeroDivisionError("not ready")

    def behave(message: Message, context: Context, app: ClientApp) -> list[Message]:
        fails = message.metadata.message_type == "query" and not until()
        return honest(message, context, broken if fails else app)  # type: ignore[arg-type]

    return behave


def test_a_node_that_is_not_ready_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfusion.flower.roll._AGAIN", 0.1)
    nodes = nodes_of(TASK, 3, tmp_path)
    nodes.nodes[FAULTY].behaviour = unready(lambda: len(nodes.nodes[FAULTY].asked) > 2)
    play(TASK, nodes, {**CONFIG, "out": str(tmp_path / "run")})
    assert not any(r["dropped"] for r in rounds(tmp_path / "run"))
    assert same(stored(tmp_path / "run"), alone(ALL, ALL, ALL))


def test_a_node_that_was_not_ready_joins_a_later_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msfusion.flower.roll._AGAIN", 0.0)
    nodes = nodes_of(TASK, 3, tmp_path)
    nodes.nodes[FAULTY].behaviour = unready(lambda: len(nodes.nodes[0].asked) > 1)
    config = {**CONFIG, "waiting.patience": 1.0, "rounds": 4}
    play(TASK, nodes, {**config, "out": str(tmp_path / "run")})
    first, *_, last = rounds(tmp_path / "run")
    (dropped,) = first["dropped"]
    assert dropped["participant"] == FAULTY
    assert "which does not say who it is: <class 'ZeroDivisionError'>:<'not ready'>" in dropped["reason"]
    assert last["participants"] == [0, 1, 2]


def slow(message: Message, context: Context, app: ClientApp) -> list[Message]:
    threading.Event().wait(0.3)
    return honest(message, context, app)


def test_a_node_that_is_asked_twice_is_not_a_second_one(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    roll = Roll(nodes.grid, 3, Waiting(patience=0.0, quorum=0.3), lambda number, capacity: None)
    for node in nodes.nodes[1:]:
        nodes.down(node)
    nodes.run_config = dict(CONFIG)
    with nodes.answering():
        assert list(roll.first()) == [0]
        nodes.nodes[1].behaviour = slow
        nodes.up(nodes.nodes[1])
        roll._look()  # asks the one, while
        nodes.down(nodes.nodes[0])  # another goes
        roll._look()
        assert list(roll.present()) == [1]
        threading.Event().wait(0.5)
        assert list(roll.present()) == [1]
    assert roll.doubles() == []


@pytest.mark.parametrize(
    ("share", "participants", "least"), [(0.5, 5, 3), (0.7, 10, 7), (0.01, 3, 1), (1, 4, 4), (0.51, 100, 51)]
)
def test_a_quorum_is_no_less_than_its_share(share: float, participants: int, least: int) -> None:
    assert Waiting(quorum=share).least(participants) == least


def test_other_settings_at_a_participant_are_refused(tmp_path: Path) -> None:
    def other(message: Message, context: Context, app: ClientApp) -> list[Message]:
        if in_the_round(message):
            context.run_config = {**context.run_config, "train.lr": 0.2}
        return honest(message, context, app)

    nodes = nodes_of(TASK, 3, tmp_path, {FAULTY: other})
    play(TASK, nodes, {**CONFIG, "out": str(tmp_path / "run")})
    (dropped,) = rounds(tmp_path / "run")[ROUND]["dropped"]
    assert "install the same versions" in dropped["reason"]


def test_a_node_that_goes_down_in_mid_round_and_comes_back_is_asked_again(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    told = []

    def falls(message: Message, context: Context, app: ClientApp) -> list[Message]:
        if in_the_round(message) and not told:
            told.append(message)
            nodes.down(nodes.nodes[FAULTY])
            return []
        return honest(message, context, app)

    def holds_up(message: Message, context: Context, app: ClientApp) -> list[Message]:
        if in_the_round(message):
            nodes.up(nodes.nodes[FAULTY])
            threading.Event().wait(3)
        return honest(message, context, app)

    nodes.nodes[FAULTY].behaviour, nodes.nodes[2].behaviour = falls, holds_up
    play(TASK, nodes, {**CONFIG, "out": str(tmp_path / "run")})
    assert len(told) == 1
    assert not any(r["dropped"] for r in rounds(tmp_path / "run"))
    assert same(stored(tmp_path / "run"), alone(ALL, ALL, ALL))


def test_a_node_that_stays_away_is_missed_and_welcomed_back(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    away = nodes.nodes[FAULTY]

    def falls(message: Message, context: Context, app: ClientApp) -> list[Message]:
        if in_the_round(message):
            nodes.down(away)
            return []
        return honest(message, context, app)

    def wakes(message: Message, context: Context, app: ClientApp) -> list[Message]:
        replies = honest(message, context, app)
        order = message.content.config_records.get("order")
        if order is not None and order["round"] == ROUND + 1:
            nodes.up(away)
        return replies

    away.behaviour, nodes.nodes[2].behaviour = falls, wakes
    play(TASK, nodes, {**CONFIG, "rounds": 4, "out": str(tmp_path / "run")})
    found = rounds(tmp_path / "run")
    assert [r["participants"] for r in found] == [[0, 1, 2], [0, 2], [0, 2], [0, 1, 2]]
    assert "Node Unavailable" in found[1]["dropped"][0]["reason"]
    assert found[2]["dropped"] == [{"participant": FAULTY, "reason": "not connected"}]


def test_a_round_in_which_nobody_answers_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 2, tmp_path, {0: silent, 1: silent})
    config = {**CONFIG, **BRIEF, "participants": 2, "rounds": 2, "out": str(tmp_path / "run")}
    play(TASK, nodes, config)
    first, second = rounds(tmp_path / "run")
    assert (second["participants"], second["train_loss"]) == ([], None)
    assert second["coverage"] == first["coverage"]
    assert same(stored(tmp_path / "run"), alone(frozenset({0, 1}), participants=2))


def breaks(message: Message, context: Context, app: ClientApp) -> list[Message]:
    def broken(*_: Any) -> Message:
        raise ZeroDivisionError("out of luck")

    asked = "order" in message.content.config_records
    return honest(message, context, broken if asked else app)  # type: ignore[arg-type]


@pytest.mark.parametrize("sample", [1.0, 0.34])
def test_a_run_in_which_all_answer_with_an_error_stops(sample: float, tmp_path: Path) -> None:
    config = {**CONFIG, "rounds": 9, "sample": sample, "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"all who were asked answered with an error, .*out of luck.*; mend"):
        play(TASK, nodes_of(TASK, 3, tmp_path, dict.fromkeys(range(3), breaks)), config)
    if sample == 1:
        assert not rounds(tmp_path / "run")
        play(TASK, nodes_of(TASK, 2, tmp_path), {**CONFIG, "participants": 2, "out": config["out"]})
        assert same(stored(tmp_path / "run"), alone(*[frozenset({0, 1})] * 3, participants=2))


def test_errors_of_fewer_than_a_quorum_stop_nobody(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 3, tmp_path, {FAULTY: breaks})
    play(TASK, nodes, {**CONFIG, "rounds": 12, "sample": 0.34, "out": str(tmp_path / "run")})
    found = rounds(tmp_path / "run")
    assert len(found) == 12
    assert any(not r["participants"] for r in found)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("method", "standalone", "expected a method whose participants exchange"),
        ("late_rate", 0.1, "expected late_rate = 0.0 under Flower, got 0.1"),
        ("train.rl", 0.1, "did you mean 'train.lr'"),
        ("waiting.quorum", 1.5, "in (0, 1]"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, value: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        play(TASK, nodes_of(TASK, 3, tmp_path), {**CONFIG, setting: value, "out": str(tmp_path / "run")})
    assert reason in str(error.value)
    assert not (tmp_path / "run").exists()
