"""Rounds under Flower end with the parameters of the project's own simulation, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from inline import honest, nodes_of, play
from points import (
    CONFIG,
    FEATURES,
    TASK,
    Net,
    data,
    parameters,
    partly_frozen,
    rounds,
    same,
    simulated,
    stored,
    turned,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from msfusion.flower import Settings, Task
from msfusion.flower.wire import Answer, Order, unpacked
from msfusion.learn.capacity import Capacity
from msfusion.learn.disk_store import last_commit
from msfusion.learn.shards import Shards
from msfusion.learn.submodels import widths_of

OPTIONS: dict[str, dict[str, Any]] = {
    "msfusion": {},
    "sampled": {"sample": 0.7, "rounds": 4},
    "contrast, sampled": {"contrast.weight": 1.0, "sample": 0.7, "rounds": 4},
    "feedback": {"adapt.kind": "feedback", "adapt.target": 0.1, "width": 0.3, "rounds": 8},
    "steps": {"server_step": "cosine", "train.lr_schedule": "cosine"},
    "momentum, sampled": {"server_momentum": 0.5, "sample": 0.7, "rounds": 4},
    "twins": {"twins": 0.9, "server_momentum": 0.5, "rounds": 4},
    "twins, tied": {"twins": 1.0, "method": "msfusion:residual-cut"},
    "unseen labels": {"mask_unseen": True, "logit_adjustment": 1.0},
    "optimizers kept": {"train.keep_optimizer": True, "train.optimizer": "adamw", "twins": 0.9, "rounds": 4},
    "fedrolex": {"method": "fedrolex"},
    "fedavg": {"method": "fedavg"},
}


@pytest.mark.parametrize(
    "option", ["msfusion", *(pytest.param(o, marks=pytest.mark.slow) for o in list(OPTIONS)[1:])]
)
def test_the_parameters_are_those_of_the_simulation(option: str, tmp_path: Path) -> None:
    config = {**CONFIG, **OPTIONS[option]}
    play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "out": str(tmp_path / "run")})
    assert same(stored(tmp_path / "run"), parameters(simulated(**config)))
    assert not list((tmp_path / "run" / "answers").iterdir())


@pytest.mark.slow
def test_the_records_are_those_of_the_simulation_but_for_scores(tmp_path: Path) -> None:
    config = {**CONFIG, **OPTIONS["feedback"]}
    play(TASK, nodes_of(TASK, 3, tmp_path), {**config, "out": str(tmp_path / "run")})
    other = ("evaluation", "seconds")
    expected = simulated(**config).history
    found = rounds(tmp_path / "run")
    assert [{k: v for k, v in r.items() if k not in other} for r in found] == [
        {k: v for k, v in r.items() if k not in other} for r in expected
    ]
    assert len({r["overlap"] for r in found}) > 1
    assert found[0]["shift"] is not None


def test_only_the_sub_model_travels(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    hub = play(TASK, nodes, {**CONFIG, "out": str(tmp_path / "run")})
    learner = hub.setup.learner(hub.setup.first_overlap())
    for number, node in enumerate(nodes.nodes):
        orders = [Order.read(message.content) for message in node.asked[1:]]
        assert [order.round for order, _ in orders] == [0, 1, 2]
        for order, values in orders:
            windows = learner.windows(order.round, hub.setup.participant(number, TensorDataset()))
            shapes = {name: hub.setup.captured.axes.shape(name, widths_of(windows)) for name in values}
            assert {name: tuple(value.shape) for name, value in values.items()} == shapes
            assert values["second.weight"].shape == (4, 6)


def test_frozen_parameters_stay_and_do_not_travel_back(tmp_path: Path) -> None:
    task, handed = Task(partly_frozen, data), []

    def watched(message: Message, context: Context, app: ClientApp) -> list[Message]:
        answers = honest(message, context, app)
        handed.extend(unpacked(Answer.read(a.content)[1]) for a in answers if "answer" in a.content)
        return answers

    nodes = nodes_of(task, 3, tmp_path)
    for node in nodes.nodes:
        node.behaviour = watched
    config = {**CONFIG, "width": 0.3, "server_momentum": 0.5}
    hub = play(task, nodes, {**config, "out": str(tmp_path / "run")})
    end = stored(tmp_path / "run")
    assert same(end, parameters(simulated(partly_frozen, **config)))
    initial = load_file(hub.home.out / "initial" / "model.safetensors")
    assert {name for name in end if torch.equal(end[name], initial[name])} == {"second.weight", "second.bias"}
    assert len(handed) == 9
    assert all(values.keys() == end.keys() - {"second.weight", "second.bias"} for values in handed)


def test_complex_parameters_and_what_follows_from_values(tmp_path: Path) -> None:
    task, config = Task(turned, data), {**CONFIG, "server_momentum": 0.5}
    play(task, nodes_of(task, 3, tmp_path), {**config, "out": str(tmp_path / "run")})
    path = last_commit(tmp_path / "run" / "model")
    assert path is not None
    end = Shards(path)
    assert end["turn"].is_complex()
    want = parameters(simulated(turned, **config))
    assert all(torch.equal(end[name], value) for name, value in want.items())


class Noisy(Net):
    """Adds what it has drawn when it was made, once into a buffer that is stored and once into others."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stored", torch.randn(FEATURES))
        self.register_buffer("drawn", torch.randn(FEATURES), persistent=False)
        self.register_buffer("of_units", torch.rand(12), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x + self.stored + self.drawn)) * self.of_units)
        return self.head(torch.relu(self.second(self.dropout(x))))


@pytest.mark.parametrize("more", [{}, {"twins": 0.5}])
def test_buffers_that_are_drawn_are_those_of_the_simulation(more: dict[str, Any], tmp_path: Path) -> None:
    def noisy(settings: Settings) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return Noisy(), (torch.zeros(2, FEATURES),)

    task = Task(noisy, data)
    config = {**CONFIG, **more, "out": str(tmp_path / "run")}
    play(task, nodes_of(task, 3, tmp_path), {**config, "rounds": 2})
    play(task, nodes_of(task, 3, tmp_path), config)
    assert same(stored(tmp_path / "run"), parameters(simulated(noisy, **more)))


@pytest.mark.parametrize("more", [{}, {"twins": 0.5}])  # the narrowest decides how many kinds there are
def test_participants_train_what_their_nodes_say_they_can_afford(
    more: dict[str, Any], tmp_path: Path
) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    nodes.nodes[1].config["width"] = 0.25
    nodes.nodes[2].config["width"] = 0.75
    hub = play(TASK, nodes, {**CONFIG, **more, "out": str(tmp_path / "run")})
    assert same(stored(tmp_path / "run"), parameters(simulated(width=(0.5, 0.25, 0.75), **more)))
    shapes = [Order.read(node.asked[1].content)[1]["second.weight"].shape for node in nodes.nodes]
    assert shapes == [(4, 6), (2, 3), (5, 9)]
    assert [hub.setup.widths(i)["first.out"] for i in range(3)] == [6, 3, 9]


def test_a_capacity_holds_for_the_whole_run(tmp_path: Path) -> None:
    nodes = nodes_of(TASK, 3, tmp_path)
    nodes.nodes[1].config["width"] = 0.25
    config = {**CONFIG, "waiting.patience": 1.0, "out": str(tmp_path / "run")}
    play(TASK, nodes, {**config, "rounds": 2})
    nodes = nodes_of(TASK, 3, tmp_path)
    nodes.nodes[2].config["width"] = 0.25
    play(TASK, nodes, {**config, "rounds": 4})
    assert [r["participants"] for r in rounds(tmp_path / "run")] == [[0, 1, 2]] * 2 + [[0, 1]] * 2
    (dropped,) = rounds(tmp_path / "run")[-1]["dropped"]
    assert dropped["reason"] == (
        "expected a participant that can afford width=0.5, as was settled for it when the run began, got "
        "width=0.25: state that in --node-config if it can, or begin a run in another directory while it is "
        "connected"
    )


def test_who_affords_more_than_was_settled_is_let_in_where_its_own_widths_would_be_others(
    tmp_path: Path,
) -> None:
    """With twins beside one that affords little, a share of 0.6 gives fewer units of the first layer."""
    config = {**CONFIG, "twins": 0.9, "share": 0.55, "out": str(tmp_path / "run")}
    del config["width"]
    for done, stated in enumerate((0.55, 0.6)):
        nodes = nodes_of(TASK, 3, tmp_path)
        nodes.nodes[1].config["share"] = 0.1
        nodes.nodes[2].config["share"] = stated
        hub = play(TASK, nodes, {**config, "rounds": done + 1, "waiting.patience": 1.0})
    assert hub.setup.plan_of(Capacity(share=0.6))["first.out"] < hub.setup.widths(2)["first.out"]
    assert [r["participants"] for r in rounds(tmp_path / "run")] == [[0, 1, 2]] * 2
