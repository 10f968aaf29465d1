"""The forward and backward pass of a small model on a CPU, as a program that runs without Python.

In a step of a small sub-model PyTorch's Python and its autograd take as long as the kernels. The kernels that
a step calls are therefore noted once, by tracing, and called again by TorchScript's interpreter: the same
kernels in the same order, so the result is the same to the bit, which is tried before a script is used.
Tracing costs about as much as a thousand steps save, so what has run that often gets a script; when, changes
nothing but time. Nothing is traced again when windows move.

What a model does in Python is noted once, and no trial would show a counter that changes something only
later. So scripts are made of this project's own models and of PyTorch's modules alone, whose code is known to
do the same every time, and not of a model, hook or loss function of the user's own.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit import optimized_execution  # type: ignore[attr-defined]

from msfusion.learn.known import is_known
from msfusion.learn.local import Train, forward_backward, precision, seeded
from msfusion.learn.objective import Objective

_WORTH = 1000  # steps


class Unscriptable(Exception):
    """Why a model has no script."""


@dataclass(frozen=True)
class Script:
    """Loss and gradients as a program.

    run: (inputs, targets, *tensors) -> the loss, and the gradients of ``wanted``.
    tensors: parameters and buffers.
    """

    run: Callable[..., list[Tensor]]
    tensors: Sequence[Tensor]
    wanted: Sequence[nn.Parameter]
    _found: list[bool] = field(default_factory=list)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss; the gradients are left in the parameters, laid out as autograd does it."""
        with torch.no_grad(), optimized_execution(False):  # it would take kernels that round otherwise
            loss, *gradients = self.run(inputs, targets, *self.tensors)
        for parameter, gradient, apart in zip(self.wanted, gradients, self._apart(gradients), strict=True):
            if not apart:
                gradient = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
            parameter.grad = gradient
        return loss

    def _apart(self, gradients: Sequence[Tensor]) -> list[bool]:
        """Which gradients are laid out like their parameters and share memory with none before; the program
        does the same in every step, so the first one tells."""
        if not self._found:
            memory = set()
            for parameter, gradient in zip(self.wanted, gradients, strict=True):
                laid_out = gradient.stride() == parameter.stride()
                self._found.append(laid_out and gradient.data_ptr() not in memory)
                memory.add(gradient.data_ptr())
        return self._found


@dataclass
class Scripts:
    """Forward and backward passes on a CPU; those that come often become scripts.

    refused: why what came often has none, by the module's class.
    made: how many there are.
    """

    worth: int = _WORTH
    refused: dict[str, str] = field(default_factory=dict)
    _seen: Counter[Any] = field(default_factory=Counter)
    _scripts: dict[Any, Script] = field(default_factory=dict)

    @property
    def made(self) -> int:
        return len(self._scripts)

    def __call__(
        self, module: nn.Module, objective: Objective, config: Train, inputs: Tensor, targets: Tensor
    ) -> Tensor:
        """As ``local.forward_backward``."""
        each = [(part.shape, part.stride(), part.dtype) for part in (inputs, targets)]
        key = (module, *each)
        if self._seen[key] == self.worth and objective.custom is None and is_known(module):
            try:
                self._scripts[key] = scripted(module, objective, config, inputs, targets)
            except Unscriptable as error:
                self.refused[type(module).__name__] = str(error)
        self._seen[key] += 1
        if key in self._scripts:
            return _explained(self._scripts[key], module, objective, config, inputs, targets)
        return forward_backward(module, objective, config, inputs, targets)


def _explained(
    script: Script, module: nn.Module, objective: Objective, config: Train, inputs: Tensor, targets: Tensor
) -> Tensor:
    """What the script returns; where it fails, the error is that of the model in Python."""
    try:
        return script(inputs, targets)
    except RuntimeError:
        forward_backward(module, objective, config, inputs, targets)
        raise


def scripted(
    module: nn.Module, objective: Objective, config: Train, inputs: Tensor, targets: Tensor
) -> Script:
    """A script of the pass over batches of this shape, tried on this one; the module stays as it is, without
    gradients.

    Raises Unscriptable where it cannot be had, or is not the same to the bit.
    """
    buffers = [buffer.clone() for buffer in module.buffers()]

    def outcome(passes: Callable[[Tensor, Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> list[bytes]:
        torch.default_generator.manual_seed(0)
        try:
            loss = passes(*batch)
            found = [loss, *(p.grad for p in module.parameters()), *module.buffers()]
            return [*map(_digest, found), _digest(torch.default_generator.get_state())]
        finally:
            _restore(module, buffers)

    def in_python(inputs: Tensor, targets: Tensor) -> Tensor:
        return forward_backward(module, objective, config, inputs, targets)

    try:
        with seeded(0, inputs.device):
            script = _traced(module, objective, config, inputs, targets)
            _restore(module, buffers)
            for batch in ((inputs, targets), (inputs.flip(0), targets.flip(0))):
                if outcome(script, batch) != outcome(in_python, batch):
                    raise Unscriptable("its results differ from those in Python")
    except Unscriptable:
        raise
    except Exception as error:  # of code that is not ours, or of tracing and scripting, which know many
        raise Unscriptable((str(error).strip() or type(error).__name__).splitlines()[0]) from None
    finally:
        _restore(module, buffers)
    return script


@torch.no_grad()
def _restore(module: nn.Module, buffers: Sequence[Tensor]) -> None:
    for buffer, before in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(before)
    for parameter in module.parameters():
        parameter.grad = None


def _digest(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return b""
    return sha256(tensor.detach().reshape(-1).view(torch.uint8).numpy().data).digest()


def _traced(
    module: nn.Module, objective: Objective, config: Train, inputs: Tensor, targets: Tensor
) -> Script:
    tensors = [*module.parameters(), *module.buffers()]
    asked = [p for p in module.parameters() if p.requires_grad]
    wanted: list[nn.Parameter] = []

    def loss_and_gradients(inputs: Tensor, targets: Tensor, *tensors: Tensor) -> list[Tensor]:
        with precision(config, inputs.device):
            loss = objective.loss(module(inputs), targets)
        found = torch.autograd.grad(loss, asked, allow_unused=True)
        pairs = [(p, gradient) for p, gradient in zip(asked, found, strict=True) if gradient is not None]
        wanted[:] = [parameter for parameter, _ in pairs]
        return [loss.detach(), *(gradient for _, gradient in pairs)]

    graph = make_fx(loss_and_gradients)(inputs, targets, *tensors)
    return Script(_compiled(graph), tensors, wanted)


def _compiled(traced: fx.GraphModule) -> Callable[..., list[Tensor]]:
    """The calls of a graph as a TorchScript program."""
    graph = traced.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket  # TorchScript finds the overload by the arguments
            node.kwargs = {
                name: value.type if isinstance(value, torch.device) else value
                for name, value in node.kwargs.items()
            }
    traced.recompile()
    with warnings.catch_warnings():
        for message in (".*torch.jit.script", "The TorchScript type system"):  # deprecated; what fx writes
            warnings.filterwarnings("ignore", message=message)
        program: Callable[..., list[Tensor]] = torch.jit.script(traced)
    return program
