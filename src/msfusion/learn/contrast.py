"""The contrastive loss: where the model in training should turn to, and what it should turn away from.

The form is that of MOON (arXiv 2103.16257). Every representation here comes from the same module with other
values: those in training, the merged ones as received, and the merged ones with the participant's previous
values where it still has them. All three hence live on the same units, wherever the windows have moved.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from msfusion.capture.rules.registry import CONVOLUTIONS
from msfusion.errors import UserError
from msfusion.learn.objective import logits_of

Place = Literal["representation", "logits"]
"""What is compared: the input of the head, or the model's output; a mean over tokens or pixels."""


@dataclass(frozen=True)
class Contrast:
    """The contrastive loss of msfusion: task + weight * contrast."""

    weight: Annotated[float, Ge(0)] = 0.0  # of the contrastive term beside the task's loss; 0 is off
    temperature: Annotated[float, Gt(0)] = 0.5  # cosines are divided by it
    every: Annotated[int, Ge(1)] = 1  # steps: the term is in the first one and in every so many after it
    on: Place = "representation"  # what is compared: the input of the head, or the logits


def contrast(z: Tensor, merged: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of -log(e^g / (e^g + e^p)) with the cosines g of z and merged, p of z and previous,
    both over the temperature; all are of shape (batch, units)."""
    towards = F.cosine_similarity(z, merged, dim=-1)
    away = F.cosine_similarity(z, previous, dim=-1)
    return F.softplus((away - towards) / temperature).mean()


@dataclass(frozen=True)
class Compared:
    """Runs a module beside itself with other values.

    merged: its parameters and buffers as received at the start of the round.
    previous: the same, with the participant's previous values where it has them.
    """

    config: Contrast
    merged: Mapping[str, Tensor]
    previous: Mapping[str, Tensor]

    def due(self, step: int) -> bool:
        """Whether the term is in the loss of a step of the round."""
        return step % self.config.every == 0

    def forward(self, module: nn.Module, inputs: Tensor) -> tuple[Any, Tensor]:
        """Output of the module, and the weighted term. The two comparisons run without dropout, but with the
        batch's own statistics where the module trains with them, and leave the generators as they were: the
        module trains with the random numbers that it has without them.
        """
        output, z = self._run(module, {}, inputs)
        with torch.no_grad(), _without_chance(module, inputs.device):
            _, merged = self._run(module, self.merged, inputs)
            _, previous = self._run(module, self.previous, inputs)
        return output, self.config.weight * contrast(z, merged, previous, self.config.temperature)

    def check(self, module: nn.Module, inputs: Tensor) -> None:
        """Raise UserError where what is compared does not belong to the examples one by one: turned around,
        a batch has to have its representations turned around, but for what the module draws."""
        with torch.no_grad(), _without_chance(module, inputs.device):
            z, again, turned = (
                self._run(module, self.merged, x)[1] for x in (inputs, inputs, inputs.flip(0))
            )
        spread, drawn = (z - z.mean(0)).abs().max(), (z - again).abs().max()
        rounding = torch.finfo(z.dtype).eps * z.abs().max()
        allowed = torch.stack([0.1 * spread, 16 * rounding, 4 * drawn]).max()
        off = (turned.flip(0) - z).abs().max() / allowed
        if float(off) > 1:  # not where all are zero
            raise UserError(
                "expected a model whose head reads the examples along its input's first dimension, found "
                "another order; compare outputs instead (contrast.on=logits) or switch the loss off "
                "(contrast.weight=0)"
            )

    def _run(self, module: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Any, Tensor]:
        def forward() -> Any:
            return functional_call(module, dict(tensors), (inputs,)) if tensors else module(inputs)

        if self.config.on == "logits":
            output = forward()
            return output, _per_example(logits_of(output), len(inputs))
        own = tensors or {**dict(module.named_parameters()), **dict(module.named_buffers())}
        with _LastInput(len(inputs), own.values()) as last:
            output = forward()
        return output, last.representation()


_CONTRACTIONS = {
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    *("inner", "tensordot", *CONVOLUTIONS),
}
"""Names of PyTorch's operations."""


class _LastInput(TorchFunctionMode):
    """Keeps what the last contraction of a forward reads: the input of the head, wherever the head's weight
    lives (a layer, a tied embedding, a parameter of the model itself).

    Of an operation's tensors the activation is the first one of two or more dimensions whose first counts
    examples, or rows of all examples one behind the other, and that is none of the model's own.
    """

    def __init__(self, examples: int, own: Iterable[Tensor]) -> None:
        super().__init__()
        self._examples = examples
        self._own = {id(tensor) for tensor in own}
        self._last: tuple[Tensor, int] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in _CONTRACTIONS:
            for tensor in pytree.tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and self._is_activation(tensor):
                    self._last = tensor, 1 if name.startswith("conv") else -1
                    break
        return func(*args, **(kwargs or {}))

    def _is_activation(self, tensor: Tensor) -> bool:
        of_the_model = {id(tensor), id(tensor._base)} & self._own
        return tensor.ndim > 1 and tensor.shape[0] % self._examples == 0 and not of_the_model

    def representation(self) -> Tensor:
        """Shape (examples, units): the mean over tokens or pixels."""
        if self._last is None:
            raise UserError(
                "expected a model whose output is made by a linear layer or a convolution, found none; "
                "compare outputs instead (contrast.on=logits) or switch the loss off (contrast.weight=0)"
            )
        tensor, units = self._last
        return _per_example(tensor.movedim(units, -1), self._examples)


def _per_example(tensor: Tensor, examples: int) -> Tensor:
    return tensor.reshape(examples, -1, tensor.shape[-1]).mean(1)


@contextmanager
def _without_chance(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, but for norms that train with the statistics of what they see."""
    before = {part: part.training for part in module.modules()}
    try:
        for part, training in before.items():
            part.training = training and isinstance(part, _NormBase)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for part, training in before.items():
            part.training = training
