"""Costs by hand; then that nothing is allocated, and that the memory is what training really takes."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from msfusion import Run
from msfusion.capture import capture
from msfusion.capture.graph import named_tensors
from msfusion.learn.contrast import Contrast
from msfusion.learn.cost import cost
from msfusion.learn.live import LiveBytes
from msfusion.learn.local import Train, train
from msfusion.learn.objective import Objective
from msfusion.models import build
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation

PLAIN = Train(batch=4, momentum=0)


def test_two_linear_layers() -> None:
    """4 examples, 3 -> 5 -> 2. A product of (m, k) and (k, n) is 2 * m * n * k operations.

    First layer: 120 forward, 120 for the weight's gradient, none for the input's. Second: 80 three times.
    """
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    got = cost(module, (torch.zeros(2, 3),), PLAIN)
    parameters = 15 + 5 + 10 + 2
    assert got.parameters == parameters
    assert got.flops_per_step == 2 * 120 + 3 * 80
    assert got.bytes_per_round == 2 * 4 * parameters


def test_two_convolutions() -> None:
    """4 images of 6x6, 2 -> 5 -> 3 channels, 3x3 taps: 2 * 36 * taps * channels in * channels out each."""
    module = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.Conv2d(5, 3, 3, padding=1, bias=False)
    )
    first, second = (2 * 4 * 36 * 9 * a * b for a, b in ((2, 5), (5, 3)))
    got = cost(module, (torch.zeros(2, 2, 6, 6),), PLAIN)
    assert got.flops_per_step == 2 * first + 3 * second


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_in_groups(groups: int, transposed: bool) -> None:
    """4 images of 6x6, 4 -> 8 channels, of which each meets one group's alone; strides of 2. Transposed, the
    taps meet every pixel that goes in, else every one that comes out."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    first = nn.Conv2d(3, 4, 1, bias=False)  # so that the second needs the gradient of its input
    second = kind(4, 8, 2, stride=2, groups=groups, bias=False)
    got = cost(nn.Sequential(first, second), (torch.zeros(2, 3, 6, 6),), PLAIN)
    one = 2 * 4 * (36 if transposed else 9) * 4 * (4 * 8 // groups)
    assert got.flops_per_step == 2 * (2 * 4 * 36 * 3 * 4) + 3 * one


def test_bilinear_layers_are_counted() -> None:
    """4 examples, 5 and 6 inputs, 7 outputs: 2 * 4 * 5 * 6 * 7, and as much for the gradient of the weight
    and of each input."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = nn.Linear(3, 5), nn.Linear(3, 6), nn.Bilinear(5, 6, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.both(self.a(x), self.b(x))

    got = cost(Pair(), (torch.zeros(2, 3),), PLAIN).flops_per_step
    assert got == 2 * (2 * 4 * 3 * (5 + 6)) + 4 * (2 * 4 * 5 * 6 * 7)


def test_products_with_a_vector_are_counted() -> None:
    """4 examples of 5 parts, 3 -> 6, then one number for each part; the gradient of the weight is a product
    with a vector, too, that of the parts is none."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.v = nn.Linear(3, 6), nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) @ self.v

    got = cost(Pooled(), (torch.zeros(2, 5, 3),), PLAIN).flops_per_step
    assert 2 * (2 * 20 * 3 * 6) + 2 * (2 * 20 * 6) <= got <= 2 * (2 * 20 * 3 * 6) + 3 * (2 * 20 * 6)


def test_sums_of_products_are_counted() -> None:
    """4 products of (5, 3) and (3, 6), summed, to which something is added: once forward, twice backward."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.ones(4, 5, 3)), nn.Parameter(torch.ones(4, 3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addbmm(x, self.left, self.right)

    one = 2 * 4 * 5 * 3 * 6
    assert cost(Summed(), (torch.zeros(5, 6),), Train(batch=5, momentum=0)).flops_per_step == 3 * one


def test_attention_is_counted() -> None:
    """Queries and keys, weights and values: 2 * T * T * D each per example, three times with backward, which
    computes the weights once more."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.weight
            return nn.functional.scaled_dot_product_attention(x, x, x)

    product = 2 * 4 * 6 * 6 * 8
    got = cost(Attention(), (torch.zeros(2, 1, 6, 8),), PLAIN).flops_per_step
    assert 6 * product <= got <= 7 * product


@pytest.mark.parametrize(
    ("train", "copies"),
    [
        (Train(momentum=0), 3),
        (Train(momentum=0.9), 4),
        (Train(optimizer="adam"), 5),
        (Train(optimizer="adamw", momentum=0), 5),
        (Train(momentum=0.9, steps=1), 4),
    ],
)
def test_parameters_gradients_and_the_state_of_the_optimizer_are_counted(train: Train, copies: int) -> None:
    """Values as received and as trained, gradients, momentum; Adam has two moments."""
    module = nn.Linear(300, 200, bias=False)
    got = cost(module, (torch.zeros(2, 300),), replace(train, batch=1))
    assert got.memory_bytes == pytest.approx(copies * 4 * 300 * 200, rel=0.02)


def test_activations_are_counted() -> None:
    """Of a wide batch: the input, two kept activations, and the gradients of one layer's input and output."""
    module = nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 2))
    got = cost(module, (torch.zeros(2, 50),), Train(batch=10_000, momentum=0))
    assert got.memory_bytes == pytest.approx(5 * 4 * 10_000 * 50, rel=0.1)


def test_frozen_parameters_have_no_gradient_and_do_not_travel_back() -> None:
    module = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False))
    module[0].requires_grad_(False)
    got = cost(module, (torch.zeros(2, 3),), PLAIN)
    assert got.parameters == 25
    assert got.bytes_per_round == 4 * (25 + 10)
    assert got.flops_per_step == 120 + 2 * 80


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x)[0][:, -1])
        return out


def test_recurrent_layers_are_counted() -> None:
    """5 steps of 3 examples, 4 gates of 16 units that read 8 inputs and 16 units; backward as much for what
    is read, but for the inputs and the first state, and for the weights."""
    got = cost(Recurrent(), (torch.zeros(3, 5, 8),), replace(PLAIN, batch=3))
    forward = 2 * 3 * 5 * 4 * 16 * (8 + 16)
    head = 2 * 3 * 16 * 2
    unread = 2 * 3 * 5 * 4 * 16 * 8 + 2 * 3 * 4 * 16 * 16
    assert got.flops_per_step == 3 * (forward + head) - unread
    assert torch.backends.mkldnn.enabled


def test_elements_have_their_own_size() -> None:
    module = nn.Linear(300, 200, bias=False).double()
    got = cost(module, (torch.zeros(2, 300, dtype=torch.float64),), Train(batch=1, momentum=0))
    assert got.memory_bytes == pytest.approx(3 * 8 * 300 * 200, rel=0.02)


def test_counting_leaves_the_module_and_its_mode_alone() -> None:
    module = nn.Linear(3, 2).eval()
    cost(module, (torch.zeros(2, 3),), PLAIN)
    assert not module.training
    assert module.weight.grad is None
    assert module.weight.device.type == "cpu"


def test_the_example_may_have_any_batch() -> None:
    module = nn.Linear(3, 2)
    assert cost(module, (torch.zeros(2, 3),), PLAIN) == cost(module, (torch.zeros(7, 3),), PLAIN)


def test_nothing_is_allocated() -> None:
    """A model of 40 GB, at a batch whose activations take terabytes."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(100_000, 100_000), nn.ReLU(), nn.Linear(100_000, 2))
    got = cost(module, (torch.zeros(2, 100_000, device="meta"),), Train(batch=10_000_000))
    assert got.parameters > 10**10
    assert got.memory_bytes > 4 * 10**12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"inputs": 16, "hidden": [32, 32]}),
        ("cnn", {"width": 8, "depth": 2, "hidden": 16, "image": 8}),
        ("gpt", {"layers": 1, "heads": 4, "embed": 16, "block": 8, "vocabulary": 7}),
    ],
)
def test_every_cost_falls_with_the_width(name: str, options: dict[str, object]) -> None:
    model, example = build(name, None, options)
    captured = capture(model, example)
    inner = [a for a in captured.axes.cuttable if not captured.axes.axes[a].residual]
    costs = []
    for width in (1.0, 0.75, 0.5, 0.25):
        plan = {axis: round(width * captured.axes.axes[axis].size) for axis in inner}
        costs.append(cost(captured.narrow(plan), example, Train()))
    for wide, slim in pairwise(costs):
        assert slim.parameters < wide.parameters
        assert slim.flops_per_step < wide.flops_per_step
        assert slim.memory_bytes < wide.memory_bytes
        assert slim.bytes_per_round < wide.bytes_per_round


def test_the_full_cost_is_that_of_the_model_itself() -> None:
    model, example = build("cnn", None, {"width": 8, "hidden": 16})
    assert cost(capture(model, example).narrow({}), example, PLAIN) == cost(model, example, PLAIN)


def allocated(run: Callable[[], object]) -> int:
    """The most bytes that PyTorch's allocator had given out at once, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events: list[tuple[int, int]] = []

    def collect(nodes: Iterable[Any]) -> None:
        for node in nodes:
            if node.tag == _EventType.Allocation:
                events.append((node.start_time_ns, node.extra_fields.alloc_size))
            collect(node.children)

    collect(profiler.profiler.kineto_results.experimental_event_tree())
    return max(accumulate(size for _, size in sorted(events)))


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("mlp", {"inputs": 256, "hidden": [1024, 1024]}, {"batch": 32, "optimizer": "adam"}),
        ("cnn", {"width": 32}, {"batch": 64}),
        ("resnet18", {"width": 32}, {"batch": 32}),
        ("gpt", {"layers": 2, "heads": 4, "embed": 128, "block": 64}, {"batch": 32, "optimizer": "adamw"}),
        ("vit", {"layers": 2}, {"batch": 16, "clip": 1.0}),
    ],
)
def test_the_memory_is_what_training_really_allocates(name: str, options: Any, settings: Any) -> None:
    module, example = build(name, None, options)
    config = Train(**settings, steps=3)
    x = example[0][:1].expand(config.batch, *example[0].shape[1:]).contiguous()
    y = torch.zeros(len(x) if x.is_floating_point() else x.shape, dtype=torch.int64)
    data = TensorDataset(x, y)
    measured = allocated(lambda: train(module, data, Objective(), config, 1e-3, seed=0))
    tensors = named_tensors(module).values()
    received = sum(t.nbytes for t in tensors if isinstance(t, nn.Parameter))
    held = sum(t.nbytes for t in tensors)
    counted = cost(module, example, config).memory_bytes
    assert counted == pytest.approx(received + held + measured, rel=0.1)


@pytest.mark.parametrize("width", [0.5, 0.4])  # factors of the scale rule: a power of 2, and not
@pytest.mark.parametrize("contrast", [0.0, 1.0])
@pytest.mark.parametrize("keep", [False, True])
def test_the_memory_is_what_a_participant_holds(width: float, contrast: float, keep: bool) -> None:
    """From the values received to those handed over, in a round in which it remembers an earlier one."""
    model, _ = build("mlp", None, {"inputs": 64, "hidden": [256] * 6})
    data = TensorDataset(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    config = Train(batch=8, steps=2, keep_optimizer=keep)
    run = Run(width=width, train=config, contrast=Contrast(weight=contrast), rounds=2, workers=1)
    simulation = Simulation(Problem(model, (torch.zeros(2, 1, 8, 8),), [data], data), run)
    learner, one = simulation.learner, simulation.participants[0]
    first = learner.windows(0, one)
    before = learner.train(0, one, first, simulation.store.pull(0, first))[2]
    windows = learner.windows(1, one)
    values = simulation.store.pull(0, windows)
    live = LiveBytes()
    live.add([*values.values(), *named_tensors(learner.submodels.load(windows, values)).values()])
    if before is not None:
        live.add([*before.values.values(), *before.optimizer.values()])
    with live:
        learner.train(1, one, windows, values, before)
    assert learner.cost(one, one.widths).memory_bytes == pytest.approx(live.peak, rel=0.1)


def test_logits_that_are_heard_count() -> None:
    """Of a model whose logits are most of what there is: 2 x 8 x 400 of them, as heard and as said."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 400))
    data = TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))
    memory = {}
    for on in (True, False):
        config = Train(batch=8, steps=2)
        run = Run(method="msfusion:apart", width=0.5, train=config, rounds=2, workers=1, complement=on)
        simulation = Simulation(Problem(model, (torch.zeros(2, 4),), [data], data), run)
        one = simulation.participants[0]
        memory[on] = simulation.learner.cost(one, one.widths).memory_bytes
    assert memory[True] - memory[False] == 2 * 2 * 8 * 400 * 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_optimizer_that_is_kept_is_there_twice(optimizer: Literal["sgd", "adam"]) -> None:
    module = nn.Linear(300, 200, bias=False)
    config = Train(batch=1, optimizer=optimizer)
    plain, kept = (
        cost(module, (torch.zeros(2, 300),), replace(config, keep_optimizer=keep)).memory_bytes
        for keep in (False, True)
    )
    assert kept - plain == (4 * 300 * 200 if optimizer == "sgd" else 2 * 4 * 300 * 200 + 4)


@pytest.mark.parametrize(("contrast", "copies"), [(None, 3), (Contrast(weight=1.0), 5)])
def test_the_contrastive_loss_keeps_two_more_copies(contrast: Contrast | None, copies: int) -> None:
    module = nn.Linear(300, 200, bias=False)
    got = cost(module, (torch.zeros(2, 300),), Train(batch=1, momentum=0), contrast)
    assert got.memory_bytes == pytest.approx(copies * 4 * 300 * 200, rel=0.02)
