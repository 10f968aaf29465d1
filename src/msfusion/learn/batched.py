"""Local training of several participants at once, on stacked sub-models of one shape.

Every tensor has the participants as its first dimension: torch.func.vmap turns the forward and the backward
pass of one into those of all, and optimizers work element by element anyway. The result is that of one by one
within rounding, but for dropout, which draws other numbers.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from msfusion.core.seeds import derive
from msfusion.learn.local import Train, batches, optimizer_of, precision, seeded
from msfusion.learn.objective import Objective, reads_a_model
from msfusion.learn.submodels import trained_names
from msfusion.learn.ways import Unbatchable

Gradients = Callable[[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor], tuple[dict[str, Tensor], Tensor]]
"""(trained parameters, all other tensors, inputs, targets) -> gradients of the trained ones, losses; all with
the participants first."""


@dataclass(frozen=True)
class Program:
    """How the sub-models of a stack train, whatever they hold.

    trained: the parameters that the loss depends on; the others stay as they are.
    """

    trained: Sequence[str]
    gradients: Gradients


@dataclass(frozen=True)
class Stack:
    """Sub-models of one shape, one behind the other.

    module: runs one of them; its own tensors are not used.
    tensors: parameters and buffers, each of shape (participants, ...).
    program: None as long as no batch has been seen.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    program: Program | None

    def of(self, place: int) -> dict[str, Tensor]:
        """The tensors of one participant: what changes them changes the stack."""
        return {name: tensor[place] for name, tensor in self.tensors.items()}

    def values(self, place: int) -> dict[str, Tensor]:
        """The parameters among them that want a gradient."""
        own = self.of(place)
        return {name: own[name] for name in trained_names(self.module)}


def without_running_statistics(module: nn.Module) -> nn.Module:
    """The module, its batch norms without running statistics, which training does not use: vmap could not
    update them."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False
    return module


def program(
    stack: Stack, inputs: Tensor, targets: Tensor, objective: Objective, config: Train, backend: Any = None
) -> Program:
    """What trains a stack, found out with a batch of one participant; nothing is trained.

    backend: what torch.compile makes code of it with; None runs it as it is.
    Raises Unbatchable where the model has no batched form; other errors are those of training it alone.
    """
    module = stack.module.train()

    def loss(own: dict[str, Tensor], rest: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return objective.loss(functional_call(module, {**own, **rest}, (inputs,)), targets)

    own = {name: tensor.detach().clone() for name, tensor in stack.of(0).items()}
    wanted = trained_names(module)
    parameters = [own[name].requires_grad_() for name in wanted]
    gradients: Gradients = vmap(grad_and_value(loss), randomness="different")
    with seeded(0, inputs.device), precision(config, inputs.device), _attention(inputs.device):
        found = torch.autograd.grad(loss(own, {}, inputs, targets), parameters, allow_unused=True)
        trained = [name for name, gradient in zip(wanted, found, strict=True) if gradient is not None]
        alone = {name: tensor.detach()[None] for name, tensor in own.items()}
        _, losses = _tried(gradients, *_parted(alone, trained), inputs[None], targets[None])
    if losses.requires_grad:
        raise reads_a_model()
    if backend is not None:
        gradients = torch.compile(gradients, backend=backend, dynamic=False)
    return Program(trained, gradients)


def _parted(
    tensors: Mapping[str, Tensor], trained: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those that are trained, and the others."""
    own = {name: tensors[name] for name in trained}
    return own, {name: tensor for name, tensor in tensors.items() if name not in own}


def _tried(gradients: Gradients, *batch: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Run once; what vmap cannot do, or only slowly, is said as Unbatchable."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "There is a performance drop", UserWarning)
        try:
            return gradients(*batch)
        except (RuntimeError, UserWarning) as error:
            raise Unbatchable(str(error).strip().splitlines()[0]) from None


def train_together(
    stack: Stack,
    data: Sequence[Dataset[Any]],
    config: Train,
    lr: float,
    seeds: Sequence[int],
    rates: Mapping[str, float],
) -> list[float]:
    """Train every sub-model of the stack in place on its own data; returns their mean losses.

    seeds: one per participant, as for ``local.train``; batches are the same, dropout is not, nor is what
        datasets draw from generators that all share.
    rates: as for ``local.optimizer_of``.
    """
    assert stack.program is not None
    device = next(iter(stack.tensors.values())).device
    stack.module.train()
    trained, others = _parted(stack.tensors, stack.program.trained)
    parameters = {name: nn.Parameter(tensor) for name, tensor in trained.items()}
    optimizer = optimizer_of(parameters, config, lr, rates)
    total = torch.zeros(len(data), device=device)
    streams = zip(
        *(batches(own, config.batch, config.steps, s) for own, s in zip(data, seeds, strict=True)),
        strict=True,
    )
    with seeded(derive(seeds[0], "batched", *seeds[1:]), device):
        for drawn in streams:
            inputs, targets = (torch.stack(part).to(device) for part in zip(*drawn, strict=True))
            with precision(config, device), _attention(device):
                found, losses = stack.program.gradients(trained, others, inputs, targets)
            if config.clip is not None:
                _clip(list(found.values()), config.clip)
            for name, parameter in parameters.items():
                parameter.grad = found[name]
            optimizer.step()
            total += losses.detach()
    return [float(loss) / config.steps for loss in total.tolist()]


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    """Where attention has a batched form: on a CPU the fused kernel has none."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _clip(gradients: Sequence[Tensor], most: float) -> None:
    """As clip_grad_norm_ does it, for every participant on its own."""
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    factor = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    shapes = [[-1] + [1] * (g.ndim - 1) for g in gradients]
    torch._foreach_mul_(list(gradients), [factor.view(shape) for shape in shapes])
