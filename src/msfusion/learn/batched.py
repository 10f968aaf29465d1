"""Local training of several participants at once, on stacked sub-models of one shape.

Every tensor has the participants as its first dimension: torch.func.vmap turns the forward and the backward
pass of one into those of all, and optimizers work element by element anyway. The result is that of one by one
within rounding, but for dropout, which draws other numbers.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from msfusion.core.seeds import derive
from msfusion.learn.local import Train, batches, optimizer_of, precision, seeded
from msfusion.learn.objective import Objective

Batched = Literal["auto", "on", "off"]
"""Whether participants of equal shape train at once: "auto" where that is faster, which is on a GPU."""


class Unbatchable(Exception):
    """Why a model cannot train several participants at once."""


@dataclass(frozen=True)
class Stack:
    """Sub-models of one shape, one behind the other.

    module: runs one of them; its own tensors are not used.
    tensors: parameters and buffers, each of shape (participants, ...).
    trained: the parameters that the loss depends on, None as long as that is not known; the others stay as
    they are.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    trained: Sequence[str] | None

    def of(self, place: int) -> dict[str, Tensor]:
        """The tensors of one participant: what changes them changes the stack."""
        return {name: tensor[place] for name, tensor in self.tensors.items()}

    def values(self, place: int) -> dict[str, Tensor]:
        """The parameters among them."""
        parameters = dict(self.module.named_parameters())
        return {name: tensor for name, tensor in self.of(place).items() if name in parameters}


def without_running_statistics(module: nn.Module) -> nn.Module:
    """The module, its batch norms without running statistics, which training does not use: vmap could not
    update them."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False
    return module


def dependencies(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    objective: Objective,
    config: Train,
) -> list[str]:
    """The parameters of one sub-model that the loss of a batch depends on; errors are those of training it
    alone."""
    own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    wanted = [name for name, p in module.named_parameters() if p.requires_grad]
    parameters = [own[name].requires_grad_() for name in wanted]
    module.train()
    with seeded(0, inputs.device), precision(config, inputs.device):
        loss = objective.loss(functional_call(module, own, (inputs,)), targets)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None]


def train_together(
    stack: Stack,
    data: Sequence[Dataset[Any]],
    objective: Objective,
    config: Train,
    lr: float,
    seeds: Sequence[int],
) -> list[float]:
    """Train every sub-model of the stack in place on its own data; returns their mean losses.

    seeds: one per participant, as for ``local.train``; batches are the same, dropout is not.
    Raises Unbatchable, with nothing trained, where the model has no batched form.
    """
    assert stack.trained is not None
    device = next(iter(stack.tensors.values())).device
    stack.module.train()
    parameters = [nn.Parameter(stack.tensors[name]) for name in stack.trained]
    optimizer = optimizer_of(parameters, config, lr)
    gradients = _gradients(stack, stack.trained, objective)
    total = torch.zeros(len(data), device=device)
    streams = zip(
        *(batches(own, config.batch, config.steps, s) for own, s in zip(data, seeds, strict=True)),
        strict=True,
    )
    with seeded(derive(seeds[0], "batched", *seeds[1:]), device):
        for step, drawn in enumerate(streams):
            inputs, targets = (torch.stack(part).to(device) for part in zip(*drawn, strict=True))
            with precision(config, device), _attention(device):
                found, losses = (gradients if step else _first(gradients))(inputs, targets)
            if config.clip is not None:
                _clip(found, config.clip)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            optimizer.step()
            total += losses.detach()
    return [float(loss) / config.steps for loss in total.tolist()]


Gradients = Callable[[Tensor, Tensor], tuple[list[Tensor], Tensor]]
"""(inputs, targets) -> gradients of the trained parameters, losses; all with the participants first."""


def _gradients(stack: Stack, names: Sequence[str], objective: Objective) -> Gradients:
    trained = {name: stack.tensors[name] for name in names}
    others = {name: tensor for name, tensor in stack.tensors.items() if name not in trained}

    def loss(own: dict[str, Tensor], rest: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        output = functional_call(stack.module, {**own, **rest}, (inputs,))
        return objective.loss(output, targets)

    mapped = vmap(grad_and_value(loss), randomness="different")

    def run(inputs: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor]:
        found, losses = mapped(trained, others, inputs, targets)
        return [found[name] for name in names], losses

    return run


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    """Where attention has a batched form: on a CPU the fused kernel has none."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _first(gradients: Gradients) -> Gradients:
    """The same, where what vmap cannot do, or only slowly, is said as Unbatchable."""

    def run(inputs: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor]:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "There is a performance drop", UserWarning)
            try:
                return gradients(inputs, targets)
            except (RuntimeError, UserWarning) as error:
                raise Unbatchable(str(error).strip().splitlines()[0]) from None

    return run


def _clip(gradients: Sequence[Tensor], most: float) -> None:
    """As clip_grad_norm_ does it, for every participant on its own."""
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    factor = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    shapes = [[-1] + [1] * (g.ndim - 1) for g in gradients]
    torch._foreach_mul_(list(gradients), [factor.view(shape) for shape in shapes])
