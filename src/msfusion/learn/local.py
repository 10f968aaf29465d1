"""One participant's local training, which knows nothing of windows or other participants."""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.utils.data import Dataset

from msfusion.core.seeds import derive
from msfusion.data import Examples, fetch
from msfusion.errors import UserError
from msfusion.learn.contrast import Compared
from msfusion.learn.memory_layout import layout_for
from msfusion.learn.objective import Objective
from msfusion.learn.optimizer import Kind, Optimizer

_FETCHED = 16_000_000  # bytes of inputs
_SPARE: list[np.random.MT19937] = []  # generators for NumPy that nobody draws from just now


@dataclass(frozen=True)
class Train:
    """Local training of one participant in one round."""

    optimizer: Kind = "sgd"  # of local training
    keep_optimizer: bool = False  # its state stays with the participant; else it is made anew in each round
    lr: Annotated[float, Gt(0)] = 0.05  # learning rate of the first round
    # adam, adamw: what sums over more units than this has a lower lr, in proportion
    lr_fan_in: Annotated[int, Gt(0)] | None = None
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9  # of sgd only
    weight_decay: Annotated[float, Ge(0)] = 0.0  # of all parameters
    batch: Annotated[int, Gt(0), Le(1_000_000)] = 32  # per step; fewer where a participant has fewer
    steps: Annotated[int, Gt(0)] = 10  # of the optimizer, per participant and round
    clip: Annotated[float, Gt(0)] | None = None  # largest norm of the gradient
    lr_schedule: Literal["constant", "cosine"] = "constant"  # over the rounds; cosine ends at a tenth
    precision: Literal["float32", "bf16"] = "float32"  # bf16: autocast in local training; values stay float32


Passes: TypeAlias = Callable[[nn.Module, Objective, Train, Tensor, Tensor], Tensor]
"""(module, objective, config, inputs, targets) -> the loss; gradients are left in the parameters."""


def make_optimizer(module: nn.Module, config: Train, lr: float, rates: Mapping[str, float]) -> Optimizer:
    """The configured optimizer over all parameters that want a gradient.

    rates: as for ``optimizer_of``.
    """
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return optimizer_of(wanted, config, lr, rates)


def optimizer_of(
    parameters: Mapping[str, nn.Parameter], config: Train, lr: float, rates: Mapping[str, float]
) -> Optimizer:
    """The configured optimizer over these parameters.

    rates: parameter -> what its learning rate is multiplied by, where that is not 1.
    """
    return Optimizer(
        config.optimizer,
        list(parameters.values()),
        lr=lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        rates=[rates.get(name, 1.0) for name in parameters],
    )


def state_like(config: Train, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like those of the configured optimizer's state once it has moved all parameters, on the meta
    device. Where they are zero, it is as if it had not."""
    unset = {name: nn.Parameter(torch.empty_like(p, device="meta")) for name, p in parameters.items()}
    if not unset:
        return {}
    optimizer = optimizer_of(unset, config, config.lr, {})
    for parameter in unset.values():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return {name: t.to("meta") for name, t in optimizer.state(list(parameters)).items()}


def learning_rate(config: Train, round: int, rounds: int) -> float:
    """Learning rate of a round, of ``rounds`` in all."""
    if config.lr_schedule == "constant":
        return config.lr
    done = round / max(1, rounds - 1)
    return config.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def train(
    module: nn.Module,
    data: Dataset[Any],
    objective: Objective,
    config: Train,
    lr: float,
    seed: int,
    compared: Compared | None = None,
    passes: Passes | None = None,
    optimizer: Optimizer | None = None,
) -> float:
    """Train in place for ``config.steps`` steps; returns the mean loss over them, that of the task alone.

    compared: adds the contrastive loss.
    passes: what does the steps without it; by default ``forward_backward``.
    optimizer: over the module's parameters, with the learning rate ``lr``; by default a new one, with that
        rate for all.
    Every random choice (batches, augmentation, dropout) follows from ``seed``; the global generators are
    left as they were.
    """
    device = next(module.parameters()).device
    optimizer = optimizer or make_optimizer(module, config, lr, {})
    module.train()
    total = torch.zeros((), device=device)
    # A loss of the user's own may view what a model makes of images, as other code may the images.
    layout = None if objective.custom is None else torch.preserve_format
    with seeded(seed, device):
        for step, (inputs, targets) in enumerate(batches(data, config.batch, config.steps, seed)):
            due = compared if compared is not None and compared.due(step) else None
            inputs, targets = inputs.to(device), targets.to(device)
            layout = layout or layout_for(module, inputs)
            inputs = inputs.to(memory_format=layout)
            total += update(module, optimizer, objective, config, inputs, targets, due, passes)
    return float(total) / config.steps


def update(
    module: nn.Module,
    optimizer: Optimizer,
    objective: Objective,
    config: Train,
    inputs: Tensor,
    targets: Tensor,
    compared: Compared | None = None,
    passes: Passes | None = None,
) -> Tensor:
    """One optimizer step; returns the loss of the task.

    compared: adds the contrastive loss.
    passes: takes the place of ``forward_backward`` in steps without it.
    """
    optimizer.zero_grad()
    if compared is not None:
        loss = forward_backward(module, objective, config, inputs, targets, compared)
    else:
        loss = (passes or forward_backward)(module, objective, config, inputs, targets)
    if config.clip is not None:
        nn.utils.clip_grad_norm_(module.parameters(), config.clip)
    optimizer.step()
    return loss


def forward_backward(
    module: nn.Module,
    objective: Objective,
    config: Train,
    inputs: Tensor,
    targets: Tensor,
    compared: Compared | None = None,
) -> Tensor:
    """The loss of the task; gradients are left in the parameters, which had none.

    compared: adds the contrastive loss to what is differentiated.
    """
    with precision(config, inputs.device):
        if compared is not None:
            output, term = compared.forward(module, inputs)
        else:
            output, term = forward(module, inputs), None
        loss = objective.loss(output, targets)
    (loss if term is None else loss + term).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def forward(module: nn.Module, inputs: Tensor) -> Any:
    """What a module makes of inputs; UserError where it fails on those of another precision than its own."""
    try:
        return module(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        own = {p.dtype for p in module.parameters() if p.is_floating_point()}
        if own and inputs.dtype not in own and _is_of_type(error, inputs.dtype):
            raise UserError(
                f"expected inputs of {' or '.join(sorted(map(str, own)))}, as the model's parameters are, "
                f"got {inputs.dtype}: convert them in the dataset, for instance with .float()"
            ) from error
        raise


_KINDS = {torch.uint8: "(Byte|unsigned char)", torch.int32: "(Int|int)", torch.int64: "(Long|long int)"}
"""What PyTorch calls the types that an image or a row of numbers may be read as."""


def _is_of_type(error: RuntimeError, dtype: torch.dtype) -> bool:
    """Whether an operation failed on the type of its inputs. Integers may be tokens, as which they are right:
    there it must be a product that names them first."""
    if dtype.is_floating_point:
        return "type" in str(error)
    kind = _KINDS.get(dtype, "()")
    return re.search(rf"(but got {kind} and|Input type \({kind}\))", str(error)) is not None


def precision(config: Train, device: torch.device) -> AbstractContextManager[Any]:
    """Where the forward pass runs in the configured precision."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def batches(data: Dataset[Any], batch: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches; examples are reshuffled whenever all have been seen.

    ``Examples``, which serve batches themselves, are asked for many at once, as far as ``_FETCHED`` bytes
    hold them.
    """
    changes = torch.Generator().manual_seed(derive(seed, "augmentation"))
    size = min(batch, len(data))  # type: ignore[arg-type]
    chosen = order(len(data), size, steps, seed)  # type: ignore[arg-type]
    serves, at_once = isinstance(data, Examples), 1
    while len(chosen):
        now, chosen = chosen[: at_once * size], chosen[at_once * size :]
        inputs, targets = fetch(data, now, changes)
        if serves:
            at_once = max(1, _FETCHED * (len(now) // size) // max(1, inputs.nbytes))
        yield from zip(torch.split(inputs, size), torch.split(targets, size), strict=True)


def order(examples: int, size: int, steps: int, seed: int) -> Tensor:
    """The examples of ``steps`` batches of so many, one batch behind the other."""
    draw = torch.Generator().manual_seed(derive(seed, "order"))
    whole = examples // size * size  # those of the last, smaller batch wait for the next shuffle
    shuffles = -(-steps * size // whole)
    every = [torch.randperm(examples, generator=draw)[:whole] for _ in range(shuffles)]
    return (torch.cat(every) if shuffles > 1 else every[0])[: steps * size]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run the body with the default generators of torch, Python and NumPy seeded, from which datasets draw as
    well, and put them back afterwards."""
    python, numpy = random.getstate(), np.random.mtrand.get_bit_generator()
    own = _SPARE.pop() if _SPARE else np.random.MT19937()
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(cuda_generator(device))
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:  # torch.manual_seed would note a stack trace for every kind of device
            generator.manual_seed(derive(seed, "torch"))
        random.seed(derive(seed, "python"))
        np.random.mtrand.set_bit_generator(own)  # to get and set a state takes ten times as long
        np.random.seed(derive(seed, "numpy") % 2**32)
        yield
    finally:
        random.setstate(python)
        np.random.mtrand.set_bit_generator(numpy)
        _SPARE.append(own)
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def cuda_generator(device: torch.device) -> torch.Generator:
    """The one that operations on this GPU draw from."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
