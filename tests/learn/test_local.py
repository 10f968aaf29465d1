"""Local training: steps by hand, batches, seeds, and what it must leave alone."""

import copy
import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from msfusion.data import Examples
from msfusion.errors import UserError
from msfusion.learn.batch_norm import estimate_batch_norm
from msfusion.learn.evaluation import evaluate
from msfusion.learn.local import Train, batches, learning_rate, make_optimizer, state_like, train
from msfusion.learn.objective import Objective


def line(weight: float) -> nn.Linear:
    """``y = weight * x``."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, weight)
    return module


def points(*xs: float) -> TensorDataset:
    """Targets are 0: the squared error of ``y = w * x`` has the gradient ``2 * w * x ** 2``."""
    x = torch.tensor(xs)[:, None]
    return TensorDataset(x, torch.zeros_like(x))


def noise(examples: int, features: int = 6, classes: int = 3) -> TensorDataset:
    draw = torch.Generator().manual_seed(examples)
    x = torch.randn(examples, features, generator=draw)
    return TensorDataset(x, torch.randint(classes, (examples,), generator=draw))


def small_net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


SQUARES = Objective(nn.MSELoss())


# --- steps by hand


def test_one_step_of_gradient_descent() -> None:
    """Weight 3, one example x = 2: the gradient is 2 * 3 * 4 = 24."""
    module = line(3.0)
    loss = train(module, points(2.0), SQUARES, Train(momentum=0, steps=1), 0.01, seed=0)
    assert loss == pytest.approx(36.0)
    assert module.weight.item() == pytest.approx(3 - 0.24)


def test_momentum_carries_the_first_gradient_into_the_second_step() -> None:
    """x = 1, lr 0.1: gradient 2, weight 0.8; gradient 1.6 + 0.5 * 2, weight 0.54."""
    module = line(1.0)
    loss = train(module, points(1.0), SQUARES, Train(momentum=0.5, steps=2), 0.1, seed=0)
    assert module.weight.item() == pytest.approx(0.54)
    assert loss == pytest.approx((1 + 0.64) / 2), "the mean over the steps"


def test_momentum_starts_anew_in_every_round() -> None:
    module = line(1.0)
    for _ in range(2):
        train(module, points(1.0), SQUARES, Train(momentum=0.5, steps=1), 0.1, seed=0)
    assert module.weight.item() == pytest.approx(0.64)


def test_weight_decay() -> None:
    """x = 0: only the decay acts, 1 - 0.1 * 0.5."""
    module = line(1.0)
    train(module, points(0.0), SQUARES, Train(momentum=0, weight_decay=0.5, steps=1), 0.1, seed=0)
    assert module.weight.item() == pytest.approx(0.95)


def test_clip_limits_the_norm_of_the_gradient() -> None:
    """The gradient 24 becomes 1."""
    module = line(3.0)
    train(module, points(2.0), SQUARES, Train(momentum=0, steps=1, clip=1.0), 0.5, seed=0)
    assert module.weight.item() == pytest.approx(2.5)


def test_clip_leaves_a_small_gradient_alone() -> None:
    module = line(3.0)
    train(module, points(2.0), SQUARES, Train(momentum=0, steps=1, clip=100.0), 0.01, seed=0)
    assert module.weight.item() == pytest.approx(3 - 0.24)


STOCK: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("always", [True, False])
def test_the_optimizer_is_the_configured_one(name: Any, momentum: float, always: bool) -> None:
    """To the bit; to rounding over steps in which one parameter has a gradient every second time, for which
    PyTorch's own fused kernel has no momentum. One never has any. One of another rate, where the optimizer
    may have some, decays with the others all the same."""
    draw = torch.Generator().manual_seed(0)
    modules = [nn.ParameterList(torch.ones(*shape) for shape in ((3, 5), (7,), (2,))) for _ in range(2)]
    config = Train(optimizer=name, weight_decay=0.25, momentum=momentum)
    ours = make_optimizer(modules[0], config, 0.125, {} if name == "sgd" else {"1": 0.5})
    own = {"momentum": momentum} if name == "sgd" else {}
    kernel = {"fused": True} if always else {"foreach": True}
    slower = {"lr": 0.0625, "weight_decay": 0.5 if name == "adamw" else 0.25} if name != "sgd" else {}
    groups = [{"params": [p], **(slower if place == 1 else {})} for place, p in enumerate(modules[1])]
    stock = STOCK[name](groups, 0.125, weight_decay=0.25, **kernel, **own)
    for step in range(5):
        ours.zero_grad()
        stock.zero_grad()
        for place, (one, other) in enumerate(zip(*(m.parameters() for m in modules), strict=True)):
            if place == 0 or (place == 1 and (always or step % 2)):
                one.grad = torch.randn(one.shape, generator=draw)
                other.grad = one.grad.clone()
        ours.step()
        stock.step()
    for one, other in zip(*(m.parameters() for m in modules), strict=True):
        torch.testing.assert_close(one, other, rtol=0 if always else 1e-6, atol=0 if always else 1e-6)
    assert not torch.equal(modules[0][1], torch.ones(7))
    assert torch.equal(modules[0][2], torch.ones(2))


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_entry_of_any_type_is_moved(name: Any, dtype: torch.dtype) -> None:
    module = nn.ParameterList([torch.ones(70, dtype=dtype)])
    module[0].grad = torch.ones(70, dtype=dtype)
    make_optimizer(module, Train(optimizer=name), 0.125, {}).step()
    torch.testing.assert_close(module[0], torch.full((70,), 0.875, dtype=dtype), rtol=0.01, atol=0)


@pytest.mark.parametrize("name", STOCK)
def test_parameters_of_two_types_are_moved_as_each_would_be_alone(name: Any) -> None:
    shapes = {torch.float32: (9,), torch.float64: (3, 5)}
    both = nn.ParameterList([torch.ones(shape, dtype=dtype) for dtype, shape in shapes.items()])
    alone = [nn.ParameterList([p.detach().clone()]) for p in both]
    optimizers = [make_optimizer(module, Train(optimizer=name), 0.125, {}) for module in (both, *alone)]
    for step in range(3):
        for parameter, one in zip(both, alone, strict=True):
            parameter.grad = torch.linspace(step, 1, parameter.numel(), dtype=parameter.dtype).view_as(
                parameter
            )
            one[0].grad = parameter.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for parameter, one in zip(both, alone, strict=True):
        assert torch.equal(parameter, one[0])
        assert not torch.equal(parameter, torch.ones_like(parameter))


@pytest.mark.parametrize("name", STOCK)
def test_a_gradient_may_lie_in_another_order_than_its_parameter(name: Any) -> None:
    modules = [nn.ParameterList([torch.ones(2, 3)]) for _ in range(2)]
    for module, gradient in zip(
        modules,
        (torch.arange(6.0).view(3, 2).t(), torch.tensor([[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]])),
        strict=True,
    ):
        module[0].grad = gradient
        make_optimizer(module, Train(optimizer=name), 0.125, {}).step()
    assert torch.equal(modules[0][0], modules[1][0])


def test_frozen_parameters_are_not_trained() -> None:
    module = nn.Sequential(line(3.0), line(1.0))
    module[0].requires_grad_(False)
    train(module, points(2.0), SQUARES, Train(weight_decay=0.5, steps=3), 0.01, seed=0)
    assert module[0].weight.item() == 3.0
    assert module[1].weight.item() < 1.0


# --- learning rate over the rounds


def test_constant_learning_rate() -> None:
    assert {learning_rate(Train(lr=0.5), r, 10) for r in range(10)} == {0.5}


def test_cosine_goes_from_the_rate_to_a_tenth_of_it() -> None:
    config = Train(lr=2.0, lr_schedule="cosine")
    rates = [learning_rate(config, r, 11) for r in range(11)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(1.1)
    assert rates[10] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(config, 0, 1) == 2.0


# --- batches


def drawn(examples: int, batch: int, steps: int, seed: int = 0) -> list[list[int]]:
    """Example numbers of every batch."""
    data = TensorDataset(torch.arange(examples), torch.zeros(examples))
    return [x.tolist() for x, _ in batches(data, batch, steps, seed)]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_no_example_comes_twice_before_the_others_of_its_epoch(
    examples: int, batch: int, steps: int, seed: int
) -> None:
    got = drawn(examples, batch, steps, seed)
    size = min(batch, examples)
    per_epoch = examples // size
    assert [len(b) for b in got] == [size] * steps
    for start in range(0, steps, per_epoch):
        epoch = [i for b in got[start : start + per_epoch] for i in b]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(examples))


def test_every_epoch_has_an_order_of_its_own() -> None:
    got = drawn(32, 8, 12)
    epochs = [tuple(i for b in got[s : s + 4] for i in b) for s in (0, 4, 8)]
    assert len(set(epochs)) == 3
    assert all(sorted(epoch) == list(range(32)) for epoch in epochs)


def test_what_does_not_fill_a_batch_is_left_to_chance() -> None:
    """5 examples in batches of 2: each epoch leaves one out, over many epochs all come equally often."""
    counts = Counter(i for b in drawn(5, 2, 2000) for i in b)
    assert min(counts.values()) > 0.9 * 4000 / 5


def test_batches_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = drawn(20, 4, 10, seed=3)
    torch.manual_seed(2)
    assert drawn(20, 4, 10, seed=3) == first
    assert drawn(20, 4, 10, seed=4) != first


class Asked(Examples):
    """Notes which generator it is asked with."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator | None] = []

    def __len__(self) -> int:
        return 4

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        self.generators.append(generator)
        shift = 0 if generator is None else torch.randint(1000, (1,), generator=generator)
        x = indices[:, None].float() + shift
        return x, torch.zeros_like(x)


def test_examples_are_augmented_in_training_only() -> None:
    data = Asked()
    train(line(0.0), data, SQUARES, Train(batch=2, steps=3), 0.1, seed=0)
    assert all(isinstance(g, torch.Generator) for g in data.generators)
    assert len(data.generators) == 2, "the first batch tells how many fit at once"
    data.generators.clear()
    evaluate(line(0.0), data, SQUARES)
    assert data.generators == [None]


def test_augmentation_follows_from_the_seed() -> None:
    def seen(seed: int) -> list[list[float]]:
        return [x.flatten().tolist() for x, _ in batches(Asked(), 2, 4, seed)]

    assert seen(0) == seen(0)
    assert seen(0) != seen(1)


# --- determinism, and what is left alone


def global_state() -> tuple[object, ...]:
    numpy = np.random.get_state(legacy=False)["state"]
    return random.getstate(), torch.get_rng_state().tolist(), numpy["key"].tolist(), numpy["pos"]


def test_training_follows_from_the_seed_alone() -> None:
    states = []
    for disturbance in (0, 1):
        module = small_net(dropout=0.5)
        torch.manual_seed(disturbance)
        random.seed(disturbance)
        train(module, noise(20), Objective(), Train(batch=8), 0.1, seed=7)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Jittered(Dataset[Any]):
    """A user's own augmentation, which draws from Python's generator and from NumPy's."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((6,), random.random()) + float(np.random.rand()), torch.tensor(index % 3)


def test_what_datasets_draw_follows_from_the_seed() -> None:
    states = []
    for disturbance in (0, 1):
        module = small_net()
        random.seed(disturbance)
        np.random.seed(disturbance)
        train(module, Jittered(), Objective(), Train(batch=8), 0.1, seed=7)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_seed_trains_otherwise() -> None:
    first, second = small_net(0.5), small_net(0.5)
    train(first, noise(20), Objective(), Train(batch=8), 0.1, seed=7)
    train(second, noise(20), Objective(), Train(batch=8), 0.1, seed=8)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_dropout_draws_anew_in_every_step() -> None:
    """With the same masks in all steps a dead unit of the input would never learn."""
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False))
    nn.init.zeros_(module[1].weight)
    data = TensorDataset(torch.ones(1, 64), torch.ones(1, 1))
    train(module, data, SQUARES, Train(momentum=0, steps=20), 1e-4, seed=0)
    assert (module[1].weight != 0).all()


def test_the_global_generators_are_left_as_they_were() -> None:
    module = small_net(0.5)
    before = global_state()
    train(module, noise(20), Objective(), Train(batch=8), 0.1, seed=7)
    estimate_batch_norm(module, [noise(20)], seed=0)
    evaluate(module, noise(20), Objective())
    assert global_state() == before


def test_the_global_generators_are_left_as_they_were_by_a_failure() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))
    before = global_state()
    with pytest.raises(UserError, match="labels from 0 to 1"):
        train(module, noise(50), Objective(), Train(), 0.1, seed=7)
    assert global_state() == before


# --- evaluation


class Table(nn.Module):
    """Logits by example number: example i is said to be of class i."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(
            torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x]


def test_evaluation_by_hand() -> None:
    """Two of three are right; the right classes have probabilities 1/2, 4/5 and 1/5."""
    got = evaluate(Table(), TensorDataset(torch.arange(3), torch.tensor([0, 1, 0])), Objective())
    assert got.accuracy == pytest.approx(2 / 3)
    assert got.loss == pytest.approx((math.log(2) + math.log(5 / 4) + math.log(5)) / 3)
    assert got.examples == 3


def test_evaluation_of_tokens() -> None:
    """Two sequences of two tokens; examples are sequences, means are over tokens."""
    data = TensorDataset(torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, 1], [2, 0]]))
    got = evaluate(Table(), data, Objective())
    assert got.accuracy == pytest.approx(3 / 4)
    assert got.loss == pytest.approx((math.log(2) + math.log(5 / 4) + math.log(2) + math.log(5)) / 4)
    assert got.examples == 2


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_evaluation_does_not_depend_on_its_batches(batch: int) -> None:
    module = small_net(0.5)
    whole = evaluate(module, noise(23), Objective(), batch=23)
    got = evaluate(module, noise(23), Objective(), batch=batch)
    assert (got.accuracy, got.examples) == (whole.accuracy, 23)
    assert got.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_custom_loss_is_averaged_over_examples() -> None:
    """Squares 1, 4 and 9 in batches of two and one."""
    got = evaluate(line(1.0), points(1.0, 2.0, 3.0), SQUARES, batch=2)
    assert got.loss == pytest.approx(14 / 3)
    assert got.accuracy is None


def test_evaluation_changes_nothing() -> None:
    module = small_net(0.5)
    before = copy.deepcopy(module.state_dict())
    evaluate(module, noise(23), Objective())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_an_empty_test_set_is_refused() -> None:
    with pytest.raises(UserError, match="expected a test set with at least one example, got none"):
        evaluate(line(1.0), points(), SQUARES)


def test_a_test_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"labels from 0 to 2.*got 5"):
        evaluate(small_net(), TensorDataset(torch.zeros(2, 6), torch.tensor([0, 5])), Objective())


# --- batch norm


def statistics(module: nn.Sequential) -> tuple[Tensor, Tensor]:
    return module[1].running_mean.clone(), module[1].running_var.clone()


def test_statistics_are_the_mean_over_participants_of_one_batch_each() -> None:
    """Participants with fewer examples than a batch: the batch is all they have, whatever the order."""
    module, data = small_net(), [noise(20), noise(33), noise(50)]
    estimate_batch_norm(module, data, seed=0)
    with torch.no_grad():
        before = [module[0](own.tensors[0]) for own in data]
    mean = torch.stack([x.mean(0) for x in before]).mean(0)
    variance = torch.stack([x.var(0, unbiased=True) for x in before]).mean(0)
    assert torch.allclose(module[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(module[1].running_var, variance, atol=1e-6)


def test_statistics_do_not_depend_on_what_was_estimated_before() -> None:
    module, data = small_net(0.5), [noise(100), noise(33)]
    estimate_batch_norm(module, data, seed=0)
    first = statistics(module)
    estimate_batch_norm(module, [noise(7)], seed=9)
    train(module, noise(20), Objective(), Train(), 1e-30, seed=0)
    estimate_batch_norm(module, data, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first, statistics(module), strict=True))


def test_estimating_leaves_the_weights_and_the_momentum_alone() -> None:
    module = small_net(0.5)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    estimate_batch_norm(module, [noise(33)], seed=0)
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())
    assert module[1].momentum == 0.1


def test_participants_without_data_are_passed_over() -> None:
    module = small_net()
    estimate_batch_norm(module, [noise(20)], seed=0)
    alone = statistics(module)
    estimate_batch_norm(module, [noise(20), noise(0)], seed=0)
    assert all(torch.equal(a, b) for a, b in zip(alone, statistics(module), strict=True))


class Pinned(nn.Sequential):
    """Batch norm stays in evaluation mode, as where a pretrained model is tuned."""

    def train(self, mode: bool = True) -> "Pinned":
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("single", [[1, 20], [20, 1], [1, 1, 1, 20]])
def test_batches_that_batch_norm_refuses_leave_no_trace(single: list[int]) -> None:
    """Also where a norm has taken in what a later one refuses."""
    want, got = (
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4)
        )
        for _ in range(2)
    )
    got.load_state_dict(want.state_dict())

    def images(sizes: list[int]) -> list[TensorDataset]:
        data = TensorDataset(torch.randn(20, 1, 8, 8) + 3, torch.zeros(20, dtype=torch.long))
        return [TensorDataset(*(t[:size] for t in data.tensors)) for size in sizes]

    torch.manual_seed(0)
    estimate_batch_norm(want, images([20]), seed=0)
    torch.manual_seed(0)
    estimate_batch_norm(got, images(single), seed=0)
    assert all(got[n].num_batches_tracked == 1 for n in (1, 4))
    assert all(map(torch.allclose, got.buffers(), want.buffers()))


def test_batch_norm_that_stays_in_evaluation_mode_keeps_its_statistics() -> None:
    module = Pinned(*small_net(), nn.BatchNorm1d(3))
    module[1].running_mean.copy_(torch.linspace(-2, 2, 8))
    before, (x, _) = statistics(module), noise(20).tensors
    estimate_batch_norm(module, [noise(20)], seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(module), strict=True))
    module[:5].eval()
    assert torch.allclose(module[5].running_mean, module[:5](x).mean(0), atol=1e-5)


class Noting(nn.Module):
    """Replaces one buffer by another, and writes into a second."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + x.mean(0)
            self.calls += 1
        return x - self.mean


def test_estimating_changes_the_buffers_of_batch_norm_alone() -> None:
    module = nn.Sequential(Noting(), *small_net())
    mean, calls = module[0].mean, module[0].calls
    estimate_batch_norm(module, [noise(20), noise(33)], seed=0)
    assert module[0].mean is mean
    assert not mean.any()
    assert module[0].calls is calls
    assert calls == 0
    assert module[2].running_mean.any()


def test_a_model_without_batch_norm_sees_no_data() -> None:
    class Unread(Dataset[Any]):
        def __len__(self) -> int:
            raise AssertionError("read")

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("read")

    estimate_batch_norm(line(1.0), [Unread()], seed=0)


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.0}, {"optimizer": "adam"}, {"optimizer": "adamw"}])
def test_what_a_state_will_be_like_is_known_before(changes: dict[str, Any]) -> None:
    """Names in their order, shapes and types, on the meta device."""
    config = Train(**changes)
    module = nn.Linear(3, 2, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    optimizer = make_optimizer(module, config, 0.1, {})
    module(torch.zeros(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()

    def facts(state: dict[str, Tensor]) -> list[tuple[str, torch.Size, torch.dtype]]:
        return [(name, t.shape, t.dtype) for name, t in state.items()]

    expected = state_like(config, parameters)
    assert facts(expected) == facts(optimizer.state(list(parameters)))
    assert all(t.is_meta for t in expected.values())
    assert bool(expected) == (changes != {"momentum": 0.0})
