"""How images lie in memory while a model is trained on a CPU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from msfusion.capture import capture
from msfusion.capture.graph import named_tensors
from msfusion.learn.local import Train, forward_backward, train
from msfusion.learn.memory_layout import lay_out, layout_for
from msfusion.learn.objective import Objective
from msfusion.learn.submodels import SubModels
from msfusion.models.cnn import cnn
from msfusion.models.mlp import mlp
from msfusion.models.resnet import resnet18
from msfusion.runtimes.run import Problem, Run
from msfusion.runtimes.simulation import Simulation

IMAGES = torch.randn(24, 1, 8, 8)
CONFIG = Train(batch=8, steps=4)


class Own(nn.Module):
    """Asks for memory as it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(-1, 256))


def small() -> nn.Module:
    torch.manual_seed(0)
    return cnn(10, 1, 8, 2, 8, 16)


def trained(module: nn.Module) -> nn.Module:
    train(module, TensorDataset(IMAGES, torch.arange(24) % 10), Objective(), CONFIG, 0.05, 0)
    return module


class Layouts(TorchDispatchMode):
    """Whether each convolution is given images with channels innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.innermost: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            _, channels, _, width = args[0].shape
            self.innermost.append(args[0].stride()[1:] == (1, width * channels, channels))
        return func(*args, **(kwargs or {}))


def test_convolutions_of_known_models_are_given_channels_innermost() -> None:
    with Layouts() as layouts:
        trained(small())
    assert len(layouts.innermost) == 2 * CONFIG.steps
    assert all(layouts.innermost)


def test_a_loss_of_the_users_own_is_given_what_the_model_makes_of_images_as_they_are() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return (output.view(len(output), -1).mean(1) - targets).square().mean()

    train(module, TensorDataset(IMAGES, torch.zeros(24)), Objective(loss), CONFIG, 0.05, 0)


def test_other_code_is_given_images_as_they_are() -> None:
    with Layouts() as layouts:
        trained(Own())
    assert layouts.innermost == [False] * CONFIG.steps
    hooked, graph = small(), small()
    hooked.register_forward_hook(lambda *_: None)
    vars(graph)["_captured_graphs"] = None
    for module in (
        hooked,
        graph,
        nn.Sequential(graph),
        Own(),
        mlp(),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    ):
        assert layout_for(module, IMAGES) is torch.preserve_format
    assert layout_for(small(), IMAGES[0]) is torch.preserve_format
    assert layout_for(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), IMAGES) is torch.channels_last


def test_without_dropout_of_images_only_rounding_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    innermost = trained(small()).state_dict()
    monkeypatch.setattr("msfusion.learn.local.layout_for", lambda *_: torch.preserve_format)
    for name, value in trained(small()).state_dict().items():
        torch.testing.assert_close(innermost[name], value, rtol=1e-4, atol=1e-5)


def test_weights_that_lie_like_the_images_change_no_bit_of_a_gradient() -> None:
    """Of a residual network, strides and pointwise convolutions included, of a width that no vector divides.
    Once the optimizer has stepped, entries differ by rounding; they are read back in the model's order."""
    torch.manual_seed(0)
    model, example = resnet18(10, 3, width=5, blocks=(1, 1)), (torch.randn(2, 3, 8, 8),)
    captured, outcomes = capture(model, example), []
    data = TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % 10)
    images, labels = (
        part.to(memory_format=torch.channels_last) if part.ndim == 4 else part for part in data[:8]
    )
    for free in (False, True):
        submodels = SubModels(captured, example, torch.device("cpu"), 1.0, free_layout=free)
        given = {name: t.detach().clone() for name, t in named_tensors(model).items()}
        module = submodels.load({}, given)
        strides = {p.stride()[1] for p in module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1}
        assert (strides == {1}) == free
        loss = forward_backward(module.train(), Objective(), CONFIG, images, labels)
        gradients = {name: p.grad for name, p in module.named_parameters()}
        train(module, data, Objective(), CONFIG, 0.05, 0)
        outcomes.append((loss, gradients, submodels.unload({}, given)))
    (loss, gradients, values), (same_loss, same_gradients, near) = outcomes
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(gradients[name], same_gradients[name]) for name in gradients)
    for name, value in values.items():
        assert near[name].is_contiguous()
        torch.testing.assert_close(near[name], value, rtol=1e-3, atol=1e-4)


def test_weights_lie_like_the_images_on_a_cpu_alone_and_where_there_are_any() -> None:
    images = torch.randn(2, 3, 8, 8)
    captured = capture(resnet18(10, 3, width=4, blocks=(1, 1)), (images,))
    elsewhere = SubModels(captured, (images,), torch.device("meta"), 1.0, free_layout=True)
    assert elsewhere.room({})["blocks.0.conv1.weight"].is_contiguous()
    module = Standardised(3, 4, 3)
    lay_out(module, images)
    assert module.raw.is_contiguous()


class Standardised(nn.Conv2d):
    """A convolution without the parameter of one."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.raw = nn.Parameter(self.weight.detach())
        del self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.raw - self.raw.mean(), self.bias)


def test_with_a_loss_of_the_users_own_weights_lie_as_pytorch_lays_them() -> None:
    data = TensorDataset(IMAGES, torch.arange(24) % 10)
    own = Objective(custom=lambda output, targets: F.cross_entropy(output.view(-1, 10), targets))
    for objective, innermost in ((Objective(), True), (own, False)):
        problem = Problem(small(), (IMAGES[:2],), [data], data, objective)
        run = Simulation(problem, Run(width=1.0, method="fedavg"))
        windows = run.learner.windows(0, run.participants[0])
        module = run.setup.submodels.load(windows, run.store.pull(0, windows))
        assert module.get_parameter("blocks.1.conv.weight").is_contiguous() is not innermost
