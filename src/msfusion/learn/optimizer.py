"""Optimizers of local training: torch's own arithmetic, without what ``torch.optim`` does around it.

For a small sub-model the hooks, profiler marks and checks of a ``torch.optim.Optimizer`` take as long as its
arithmetic. Here the functions behind its classes are called directly, those of one fused kernel where there
is one; the values are the same to the bit.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

Kind = Literal["sgd", "adam", "adamw"]

_MOMENTS = ("first", "second", "steps")


class Optimizer:
    """Moves parameters against their gradients; its steps work element by element.

    parameters: those without a gradient in a step are left alone in it.
    momentum: of sgd only.
    rates: what the learning rate of each parameter is multiplied by, but not its decay; of adam and adamw
        only.
    """

    def __init__(
        self,
        kind: Kind,
        parameters: list[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        rates: Sequence[float],
    ) -> None:
        self.kind, self.parameters = kind, parameters
        self._places = {
            rate: {place for place, own in enumerate(rates) if own == rate} for rate in dict.fromkeys(rates)
        }
        self.momentum, self.weight_decay = momentum, weight_decay
        # One kernel that reads and writes everything once, where PyTorch has it.
        self._fused = all(map(_has_fused_kernel, parameters))
        self._at_once = self._fused and len({(p.device, p.dtype) for p in parameters}) == 1
        # Where a step may be recorded, its rate lies where the recording finds the next round's.
        recordable = self._fused and any(p.is_cuda for p in parameters)
        self.lr: float | Tensor = torch.tensor(lr, device=parameters[0].device) if recordable else lr
        self._momenta: dict[int, Tensor | None] = {}
        self._moving: list[Tensor] = []  # the momenta, once all parameters have one and share a kernel
        self._plain: list[Tensor] = list(parameters)
        self._strides = [p.stride() for p in parameters]
        self._moments: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @torch.no_grad()
    def start_again(self, lr: float) -> None:
        """As new, with another learning rate; what is kept stays where it lies."""
        if isinstance(self.lr, Tensor):
            self.lr.fill_(lr)
        else:
            self.lr = lr
        kept = [t for t in self._momenta.values() if t is not None]
        kept += [tensor for moments in self._moments.values() for tensor in moments]
        if kept:
            torch._foreach_zero_(kept)

    def state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What a later optimizer can go on with, its own tensors: by "momentum/", "first/", "second/" or
        "steps/" and the parameter's name.

        names: of the parameters.
        """
        momenta = {f"momentum/{names[at]}": t for at, t in self._momenta.items() if t is not None}
        moments = {
            f"{kind}/{names[at]}": tensor
            for at, own in self._moments.items()
            for kind, tensor in zip(_MOMENTS, own, strict=True)
        }
        return momenta | moments

    @torch.no_grad()
    def restore(self, names: Sequence[str], state: Mapping[str, Tensor]) -> None:
        """Go on with copies of such a state; parameters of which it has nothing begin anew."""
        self._moving = []
        for place, name in enumerate(names):
            parameter = self.parameters[place]
            if (momentum := state.get(f"momentum/{name}")) is not None:
                self._momenta[place] = _unset(parameter).copy_(momentum)
            if f"{_MOMENTS[0]}/{name}" in state:
                own = self._moments[place] = self._unmoved(parameter)
                for tensor, kind in zip(own, _MOMENTS, strict=True):
                    tensor.copy_(state[f"{kind}/{name}"])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients that there are."""
        if self._moving and (given := self._all_given()):
            self._sgd_kernel(self._plain, given, self._moving, first=False)
            return
        places = [place for place, p in enumerate(self.parameters) if p.grad is not None]
        if places:
            parameters: list[Tensor] = [self.parameters[place] for place in places]
            gradients = [_laid_out(self.parameters[place]) for place in places]
            (self._sgd if self.kind == "sgd" else self._adam)(places, parameters, gradients)

    def _all_given(self) -> list[Tensor]:
        """The gradients of all parameters, laid out like these; nothing where one is missing or is not."""
        given = [p.grad for p in self.parameters]
        alike = all(g is not None and g.stride() == s for g, s in zip(given, self._strides, strict=True))
        return cast(list[Tensor], given) if alike else []

    def _sgd(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        moving = [momentum for place in places if (momentum := self._momenta.get(place)) is not None]
        if self._at_once and self.momentum and len(moving) in (0, len(places)):
            first = not moving
            if first:
                moving = [torch.empty_like(gradient) for gradient in gradients]
                self._momenta |= zip(places, moving, strict=True)
            self._sgd_kernel(parameters, gradients, moving, first)
            if len(places) == len(self.parameters):
                self._moving = moving
            return
        known = {place for place in places if place in self._momenta}
        for own in (known, set(places) - known):  # the fused kernel wants momenta of all or of none
            each = [i for i, place in enumerate(places) if place in own]
            momenta = [self._momenta.get(places[i]) for i in each]
            if each:
                self._sgd_alike([parameters[i] for i in each], [gradients[i] for i in each], momenta)
            if self.momentum:
                self._momenta |= zip((places[i] for i in each), momenta, strict=True)

    def _sgd_kernel(
        self, parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], first: bool
    ) -> None:
        """What ``sgd`` comes to where all parameters have momenta, or none has yet. Over a small model its
        checks and its grouping take three times as long as the kernel."""
        torch._fused_sgd_(
            parameters,
            gradients,
            momenta,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=first,
        )

    def _sgd_alike(
        self, parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor | None]
    ) -> None:
        sgd(
            parameters,
            gradients,
            momenta,
            foreach=not self._fused,
            fused=self._fused,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.lr,  # type: ignore[arg-type]
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def _adam(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for place, parameter in zip(places, parameters, strict=True):
            if place not in self._moments:
                self._moments[place] = self._unmoved(parameter)
        for rate, own in self._places.items():
            each = [i for i, place in enumerate(places) if place in own]
            moments = [self._moments[places[i]] for i in each]
            if each:
                self._adam_alike([parameters[i] for i in each], [gradients[i] for i in each], moments, rate)

    def _adam_alike(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        moments: list[tuple[Tensor, Tensor, Tensor]],
        rate: float,
    ) -> None:
        decoupled = self.kind == "adamw"  # then the rate is in the decay
        first, second, steps = (list(column) for column in zip(*moments, strict=True))
        adam(
            parameters,
            gradients,
            first,
            second,
            [],
            steps,
            foreach=not self._fused,
            fused=self._fused,
            has_complex=any(p.is_complex() for p in parameters),
            decoupled_weight_decay=decoupled,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr if rate == 1 else self.lr * rate,
            weight_decay=self.weight_decay / rate if decoupled else self.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _unmoved(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moments and number of steps before the first one."""
        one, other = (_unset(parameter).zero_() for _ in range(2))
        device = parameter.device if self._fused else "cpu"  # where the functions of torch want it
        return one, other, torch.tensor(0.0, dtype=torch.float32, device=device)


def _has_fused_kernel(parameter: Tensor) -> bool:
    """On a CPU the fused SGD of PyTorch leaves most of a tensor of half precision as it is, without a word
    (pytorch/pytorch issue 191763)."""
    if parameter.is_cuda:
        return parameter.is_floating_point()
    return parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64)


def _unset(parameter: Tensor) -> Tensor:
    """Room of the shape and strides of a parameter."""
    return torch.empty_like(parameter, requires_grad=False, memory_format=torch.preserve_format)


def _laid_out(parameter: nn.Parameter) -> Tensor:
    """The gradient with the strides of the parameter: the fused kernels go through memory, and take others
    without a word."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
