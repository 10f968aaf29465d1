"""What a sub-model costs the participant that trains it, counted on tensors that hold no memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from msfusion.capture.graph import copy_with, named_tensors, quiet
from msfusion.learn.batch_norm import one_value
from msfusion.learn.contrast import Compared, Contrast
from msfusion.learn.flops import counter
from msfusion.learn.known import is_known
from msfusion.learn.live import LiveBytes
from msfusion.learn.local import Train, make_optimizer, state_like, update
from msfusion.learn.memory_layout import lay_out, layout_for
from msfusion.learn.objective import Objective, logits_of
from msfusion.learn.optimizer import Optimizer

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Cost of a sub-model.

    parameters: number of parameters.
    flops_per_step: floating-point operations of one optimizer step, forward and backward; matrix products,
    convolutions and attention, a multiply-add being two; the mean over a round's steps.
    memory_bytes: the most bytes of tensors that are alive at once in a step: parameters as received and as
    they are trained, gradients, optimizer state, activations, and what lives for a moment only. The workspace
    inside a kernel is not seen; a simulation in one process needs no second copy of what it receives.
    bytes_per_round: parameters received, and those of them handed back that are trained.
    """

    parameters: int
    flops_per_step: int
    memory_bytes: int
    bytes_per_round: int


def cost(
    module: nn.Module, example: tuple[Tensor, ...], config: Train, contrast: Contrast | None = None
) -> Cost:
    """Count the cost of training on batches of ``config.batch`` examples shaped like ``example``.

    A real optimizer step runs on tensors without values. Its loss is the cross-entropy of logits where the
    module returns one tensor, else the sum of all that it returns.
    contrast: also count the contrastive loss in the steps that have it, and the copies of the values that it
    keeps: previous, and previous as handed over.
    Where the optimizer is kept, its state is counted twice: as it was left, and as it moves.
    """
    return _of_first_that_runs(module, example, config, lambda count: count.cost(contrast))


def changing_buffers(module: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Buffers that a forward pass in train mode changes, but for those of batch norm."""
    known = {
        id(buffer)
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for buffer in part.buffers(recurse=False)
    }
    others = [name for name, buffer in module.named_buffers() if id(buffer) not in known]
    if not others:
        return []
    changed = _of_first_that_runs(module, example, Train(batch=2), _Count.changed_buffers)
    return [name for name in others if name in changed]


def counters(module: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Attributes that hold another number after each forward pass in train mode."""
    if is_known(module):
        return []
    return _of_first_that_runs(module, example, Train(batch=2), _Count.counted)


def least_batch(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """How many examples a batch must have in train mode: 2 where a norm would see a single value per channel
    in one example, else 1."""
    try:
        _of_first_that_runs(module, example, Train(batch=1), _Count.run)
    except ValueError as error:
        if not one_value(error):
            raise
        return 2
    return 1


def takes(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a module in eval mode takes inputs of this shape."""
    try:
        _Count(module, (inputs,), Train(batch=2), "cpu", False, True).run()
    except Exception:  # whatever a forward raises
        return False
    return True


def logits(module: nn.Module, example: tuple[Tensor, ...], batch: int) -> Tensor:
    """The logits of a batch, on the meta device."""
    return _of_first_that_runs(module, example, Train(batch=batch), _Count.logits)


def _of_first_that_runs(
    module: nn.Module, example: tuple[Tensor, ...], config: Train, found: "Callable[[_Count], T]"
) -> T:
    """What is found where the model's code can run without values."""
    attempts: list[tuple[str, bool, bool]] = [
        ("cpu", True, False),
        ("meta", True, False),  # operations that are unknown on tensors without values
        ("cpu", True, True),
        ("cpu", False, True),  # layers that train mode leaves out by chance
    ]
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    with quiet(), _without_onednn() if recurrent else nullcontext():
        for device, training, compiling in attempts[:-1]:
            try:
                return found(_Count(module, example, config, device, training, compiling))
            except RuntimeError:
                pass
        return found(_Count(module, example, config, *attempts[-1]))


@contextmanager
def _without_onednn() -> Iterator[None]:
    """A whole LSTM is one operation of oneDNN, of which neither arithmetic nor memory shows."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # PyTorch's own context warns about GPUs
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


class _Count:
    """Optimizer steps of a module on fake tensors.

    compiling: the module believes that it is compiled; code that minds tensors without values asks for that.
    """

    def __init__(
        self,
        module: nn.Module,
        example: tuple[Tensor, ...],
        config: Train,
        device: str,
        training: bool,
        compiling: bool,
    ) -> None:
        # Fake also on meta: code that looks at values where it can (masks in transformers) then does not.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._config = config
        with self._mode:
            own = {id(t): _empty(t.shape, t, device) for t in named_tensors(module).values()}
            self._inputs, *more = [_empty((config.batch, *t.shape[1:]), t, device) for t in example]
        self._module = copy_with(module, own).train(training)
        if more:
            self._module.register_forward_pre_hook(lambda _, inputs: (*inputs, *more))
        with self._mode:
            lay_out(self._module, self._inputs)
            self._inputs = self._inputs.to(memory_format=layout_for(self._module, self._inputs))
        if compiling:
            self._module.forward = _compiling_state_context()(self._module.forward)

    def cost(self, contrast: Contrast | None) -> Cost:
        parameters = list(self._module.parameters())
        received = sum(p.nbytes for p in parameters)
        trained = sum(p.nbytes for p in parameters if p.requires_grad)
        flops, memory = self._step(None)
        if contrast:
            due = len(range(0, self._config.steps, contrast.every)) / self._config.steps
            with_contrast, memory = self._step(contrast)
            flops = round(due * with_contrast + (1 - due) * flops)
            memory += trained
        memory += received
        if self._config.keep_optimizer:
            moving = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
            memory += sum(t.nbytes for t in state_like(self._config, moving).values())
        return Cost(sum(p.numel() for p in parameters), flops, memory, received + trained)

    def run(self) -> None:
        """A forward pass."""
        with self._mode:
            self._module(self._inputs)

    def logits(self) -> Tensor:
        """Those of a forward pass, on the meta device."""
        with self._mode:
            made = logits_of(self._module(self._inputs))
        return torch.empty(made.shape, dtype=made.dtype, device="meta")

    def changed_buffers(self) -> set[str]:
        """Those written to, or replaced, by a forward pass."""
        before = {name: (buffer, buffer._version) for name, buffer in self._module.named_buffers()}
        self.run()
        return {
            name
            for name, buffer in self._module.named_buffers()
            if name in before and (buffer is not before[name][0] or buffer._version != before[name][1])
        }

    def counted(self) -> list[str]:
        """Attributes that are other numbers after a second forward pass than after the first."""
        self.run()
        before = self._numbers()
        self.run()
        return [name for name, number in self._numbers().items() if repr(number) != repr(before.get(name))]

    def _numbers(self) -> dict[str, float]:
        return {
            f"{name}.{own}".lstrip("."): value
            for name, part in self._module.named_modules()
            for own, value in vars(part).items()
            if isinstance(value, int | float)
        }

    def _step(self, contrast: Contrast | None) -> tuple[int, int]:
        """Operations of a step that is not the round's first, and the most bytes alive in it."""
        live = LiveBytes()
        with self._mode, live:
            tensors = named_tensors(self._module)
            live.add([*tensors.values(), self._inputs])
            optimizer = make_optimizer(self._module, self._config, 1e-3, {})
            if self._config.steps > 1:
                _make_states(optimizer)
            compared = None
            if contrast:
                merged = {name: tensor.detach() for name, tensor in tensors.items()}  # those received
                previous = {name: tensor.clone() for name, tensor in merged.items()}
                compared = Compared(contrast, merged, previous)
            with counter() as flops:
                update(
                    self._module, optimizer, _OBJECTIVE, self._config, self._inputs, self._inputs, compared
                )
        return flops.get_total_flops(), live.peak


def _empty(shape: Sequence[int], like: Tensor, device: str) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=device)


def _make_states(optimizer: Optimizer) -> None:
    """A step with any gradients."""
    for parameter in optimizer.parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()


def _loss(output: Any, targets: Tensor) -> Tensor:
    """Of a Hugging Face output its logits, else of every tensor with a gradient."""
    found = [getattr(output, "logits", None)]
    if found[0] is None:
        found = tree_leaves(output)
    tensors = [t for t in found if isinstance(t, Tensor) and t.requires_grad]
    if len(tensors) == 1 and tensors[0].ndim > 1:
        logits = tensors[0].flatten(0, -2)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
    return torch.stack([t.sum() for t in tensors]).sum()


_OBJECTIVE = Objective(_loss)
