"""What a sub-model costs the participant that trains it, counted on tensors that hold no memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from msfusion.capture.graph import copy_with, named_tensors, quiet
from msfusion.learn.contrast import Contrast
from msfusion.learn.local import Train

_STATES = {"sgd": 1, "adam": 2, "adamw": 2}  # optimizer tensors per parameter


@dataclass(frozen=True)
class Cost:
    """Cost of a sub-model.

    parameters: number of parameters.
    flops_per_step: floating-point operations of one optimizer step, forward and backward; matrix products,
    convolutions and attention, a multiply-add being two; the mean over a round's steps.
    memory_bytes: parameters, gradients, optimizer state, and activations kept for the backward pass. What
    lives for a moment only is left out: real peaks on a CPU were 1.1 to 1.7 times as high.
    bytes_per_round: parameters received and handed back.
    """

    parameters: int
    flops_per_step: int
    memory_bytes: int
    bytes_per_round: int


def cost(
    module: nn.Module, example: tuple[Tensor, ...], config: Train, contrast: Contrast | None = None
) -> Cost:
    """Count the cost of training on batches of ``config.batch`` examples shaped like ``example``.

    contrast: also count two more forward passes in the steps with the contrastive loss, and three more copies
    of the values: as received, previous, and previous as kept between rounds.
    """
    with quiet():
        try:
            return _cost(module, example, config, contrast, "meta", training=True)
        except RuntimeError:  # tensors made without a device, operations that meta does not know
            pass
        with _compiling_state_context():  # code that minds tensors without values asks for this state
            try:
                return _cost(module, example, config, contrast, "cpu", training=True)
            except RuntimeError:  # layers that train mode leaves out by chance
                return _cost(module, example, config, contrast, "cpu", training=False)


def _cost(
    module: nn.Module,
    example: tuple[Tensor, ...],
    config: Train,
    contrast: Contrast | None,
    device: str,
    *,
    training: bool,
) -> Cost:
    # Fake as well as on meta: code that looks at values where it can (masks in transformers) then does not.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        own = named_tensors(module).values()
        tensors = {id(t): torch.empty(t.shape, dtype=t.dtype, device=device) for t in own}
        inputs = tree_map_only(Tensor, lambda t: _batch_of(t, config.batch, device), example)
    meta = copy_with(module, tensors).train(training)
    trainable = [p for p in meta.parameters() if p.requires_grad]
    saved: dict[int, int] = {}
    known = {p.untyped_storage()._cdata for p in trainable}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with mode, FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda t: t):
        outputs = _tensors_of(meta(*inputs))
        forward = flops.get_total_flops()
        activations = sum(saved.values()) + sum(t.untyped_storage().nbytes() for t in outputs)
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    states = _STATES[config.optimizer] if config.optimizer != "sgd" or config.momentum else 0
    size = sum(p.numel() * p.element_size() for p in meta.parameters())
    trained = sum(p.numel() * p.element_size() for p in trainable)
    due = len(range(0, config.steps, contrast.every)) if contrast else 0
    return Cost(
        parameters=sum(p.numel() for p in meta.parameters()),
        flops_per_step=flops.get_total_flops() + round(2 * forward * due / config.steps),
        memory_bytes=size * (4 if contrast else 1) + trained * (1 + states) + activations,
        bytes_per_round=2 * trained,
    )


def _tensors_of(output: Any) -> list[Tensor]:
    """What a loss can be made of: a Hugging Face output's logits, or every tensor with a gradient."""
    found = [getattr(output, "logits", None)]
    if found[0] is None:
        found = tree_leaves(output)
    return [t for t in found if isinstance(t, Tensor) and t.requires_grad]


def _batch_of(tensor: Tensor, batch: int, device: str) -> Tensor:
    return torch.empty([batch, *tensor.shape[1:]], dtype=tensor.dtype, device=device)
