"""Steps as programs: the same to the bit, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from at_once import examples, simulation
from torch import Tensor, nn

from msfusion.errors import UserError
from msfusion.learn.local import Train, forward_backward, train
from msfusion.learn.objective import Objective
from msfusion.learn.scripts import Script, Scripts, scripted
from msfusion.models import build

ZOO: dict[str, dict[str, Any]] = {
    "mlp": {"inputs": 64, "hidden": [16, 16], "dropout": 0.2},
    "cnn": {"channels": 1, "image": 8, "width": 8},
    "resnet18": {"width": 8, "blocks": (1, 1)},
    "gpt": {"layers": 2, "heads": 2, "embed": 16, "block": 12, "vocabulary": 65, "dropout": 0.1},
    "vit": {"layers": 1, "heads": 2, "embed": 16, "image": 8, "patch": 4},
}


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, None, ZOO[name])[0]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(
    "config", [Train(batch=8, steps=12), Train("adamw", lr=1e-3, batch=8, steps=12, clip=0.5)]
)
def test_training_is_the_same_to_the_bit(name: str, config: Train) -> None:
    """With dropout, batch norm, clipping, two optimizers; the script comes after four steps of twelve."""
    scripts = Scripts(worth=4)
    modules, losses = [], []
    for passes in (None, scripts):
        module = model(name)
        losses.append(train(module, examples(name, 40), Objective(), config, config.lr, 3, None, passes))
        modules.append(module)
    assert scripts.made == 1, scripts.refused
    assert losses[0] == losses[1]
    for (key, one), other in zip(
        modules[0].state_dict().items(), modules[1].state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key


@pytest.mark.slow
def test_a_whole_run_is_the_same_to_the_bit_in_one_process_and_in_two(tmp_path: Path) -> None:
    ends = []
    for worth, workers in ((10**9, 1), (5, 1), (5, 2)):
        torch.manual_seed(0)
        data = [examples("cnn", size) for size in (24, 9, 5)]  # batches of 8 and of 5
        own = simulation(model("cnn"), data, rounds=4, workers=workers, width=(0.5, 0.25))
        own.setup.passes.worth = worth
        ends.append(own.run().model.state_dict())
        assert (own.setup.passes.made > 1) == (worth == 5 and workers == 1)
    for other in ends[1:]:
        assert all(torch.equal(value, other[name]) for name, value in ends[0].items())


def test_what_is_not_trained_has_no_gradient() -> None:
    module = model("mlp")
    frozen = next(module.parameters()).requires_grad_(False)
    module.idle = nn.Parameter(torch.ones(2))
    x, y = examples("mlp", 8).tensors
    script = scripted(module.train(), Objective(), Train(), x, y)
    script(x, y)
    without = [p for p in module.parameters() if p.grad is None]
    assert len(without) == 2
    assert frozen in set(without)
    assert module.idle in set(without)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_kernels_are_not_exchanged(precision: Any) -> None:
    """TorchScript's own optimizations would put matrix products of this size together."""
    torch.manual_seed(0)
    module = build("mlp", None, {"inputs": 1000, "hidden": [1024]})[0].train()
    x, y = torch.randn(32, 1000), torch.randint(10, (32,))
    scripted(module, Objective(), Train(precision=precision), x, y)


def test_making_a_script_leaves_everything_as_it_was() -> None:
    module = model("resnet18").train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    drawn = torch.default_generator.get_state()
    scripted(module, Objective(), Train(), *examples("resnet18", 8).tensors)
    assert torch.equal(torch.default_generator.get_state(), drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


class Own(nn.Module):
    """Counts in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.count = nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        out: Tensor = self.inner(x) * self.count
        return out


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


def patched() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].forward = lambda x: x[:, :3]  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("make", [Own, lambda: nn.Sequential(Own()), hooked, patched])
def test_code_of_the_users_own_gets_no_script(make: Callable[[], nn.Module]) -> None:
    scripts, module = Scripts(worth=1), make()
    for step in range(3):
        module.zero_grad()
        loss = scripts(
            module, Objective(), Train(), torch.randn(8, 4, requires_grad=True), torch.arange(8) % 3
        )
        assert torch.isfinite(loss)
        assert getattr(module, "count", step + 1) == step + 1
    assert (scripts.made, scripts.refused) == (0, {})


def test_gradients_lie_as_autograd_leaves_them() -> None:
    """Clipping scales them in place, and sums their squares in the order of memory."""
    module = build("cnn", None, ZOO["cnn"])[0].train().to(memory_format=torch.channels_last)
    x, y = examples("cnn", 8).tensors
    x = x.expand(8, 3, 8, 8).contiguous(memory_format=torch.channels_last)[:, :1]
    script = scripted(module, Objective(), Train(), x, y)
    script(x, y)
    strides = [p.grad.stride() for p in module.parameters()]
    module.zero_grad()
    forward_backward(module, Objective(), Train(), x, y)
    assert strides == [p.grad.stride() for p in module.parameters()]


def test_what_autograd_would_share_is_copied() -> None:
    one, other = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 3))
    gradient = torch.ones(2, 3)
    Script(lambda *_: [torch.tensor(1.0), gradient, gradient], [], [one, other])(gradient, gradient)
    one.grad.mul_(2)
    assert torch.equal(other.grad, torch.ones(2, 3))


def test_a_batch_that_lies_otherwise_in_memory_gets_a_script_of_its_own() -> None:
    scripts, module = Scripts(worth=1), model("mlp").train()
    x, y = examples("mlp", 8).tensors
    for batch in (x, x.t().contiguous().t()):
        for _ in range(3):
            module.zero_grad()
            scripts(module, Objective(), Train(), batch, y)
    assert scripts.made == 2


def test_a_loss_of_the_users_own_and_what_is_switched_off_get_no_script() -> None:
    scripts = Scripts(worth=1)
    own = Objective(lambda output, targets: output.square().mean())
    module = model("mlp")
    for _ in range(3):
        scripts(module, own, Train(), *examples("mlp", 8).tensors)
    assert (scripts.made, scripts.refused) == (0, {})
    data = [examples("mlp", 8)]
    assert simulation(model("mlp"), data, script=False).learner.passes is None
    assert simulation(model("mlp"), data, compile=True).learner.passes is None
    assert simulation(model("mlp"), data, width=None, memory="1GB").learner.passes is None
    assert simulation(model("mlp"), data).learner.passes is not None


def test_a_refused_model_goes_on_in_python() -> None:
    ends = []
    for worth in (2, 10**9):
        torch.manual_seed(0)
        scripts, module = Scripts(worth), nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10, momentum=None))
        train(module, examples("mlp", 40), Objective(), Train(batch=8, steps=6), 0.1, 3, None, scripts)
        ends.append(module.state_dict())
        assert scripts.made == 0
        assert ("tracing tensor" in scripts.refused.get("Sequential", "")) == (worth == 2)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_wrong_label_is_said_as_without_a_script() -> None:
    scripts = Scripts(worth=1)
    module, (x, y) = model("mlp").train(), examples("mlp", 8).tensors
    for _ in range(2):
        scripts(module, Objective(), Train(), x, y)
        module.zero_grad()
    assert scripts.made == 1
    with pytest.raises(UserError, match="expected labels from 0 to 9"):
        scripts(module, Objective(), Train(), x, y + 5)
