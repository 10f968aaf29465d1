"""How images lie in memory while a model is trained on a CPU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from msfusion.capture import capture
from msfusion.learn.known import layout_for
from msfusion.learn.local import Train, train
from msfusion.learn.objective import Objective
from msfusion.learn.submodels import SubModels, tensors_of
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


def test_weights_that_lie_like_the_images_change_no_bit() -> None:
    """Of a residual network, strides and pointwise convolutions included; its parameters are read back as
    they lie in the full model."""
    torch.manual_seed(0)
    model = resnet18(10, 1, width=4, blocks=(1, 1))
    example = (IMAGES[:2],)
    captured = capture(model, example)
    outcomes = []
    for free in (False, True):
        submodels = SubModels(captured, example, torch.device("cpu"), 1.0, free_layout=free)
        values = {name: t.detach().clone() for name, t in tensors_of(model).items()}
        module = submodels.load({}, values)
        innermost = {p.stride()[1] == 1 for p in module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1}
        assert innermost == {free}
        trained(module)
        outcomes.append({**submodels.unload({}, module), **dict(module.named_buffers())})
    assert all(value.is_contiguous() for value in outcomes[1].values())
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def test_with_a_loss_of_the_users_own_weights_lie_as_pytorch_lays_them() -> None:
    data = TensorDataset(IMAGES, torch.arange(24) % 10)
    own = Objective(custom=lambda output, targets: F.cross_entropy(output.view(-1, 10), targets))
    for objective, innermost in ((Objective(), True), (own, False)):
        problem = Problem(small(), (IMAGES[:2],), [data], data, objective)
        run = Simulation(problem, Run(width=1.0, method="fedavg"))
        windows = run.learner.windows(0, run.participants[0])
        module = run.setup.submodels.load(windows, run.store.pull(0, windows))
        assert module.get_parameter("blocks.1.conv.weight").is_contiguous() is not innermost
