"""Runnable sub-models: one narrow module per width plan, filled with the values of any window."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from msfusion.capture import Capture
from msfusion.core import scale
from msfusion.core.axes import AxisMap, Selection, Widths, count
from msfusion.learn.contrast import Contrast
from msfusion.learn.cost import Cost, cost
from msfusion.learn.local import Train

Plan = tuple[tuple[str, int], ...]
"""Widths in a fixed order, as a key."""


class SubModels:
    """Makes and keeps the narrow modules of a captured model.

    A window that moves keeps its width, so a module is built once per width plan, not once per round.
    """

    def __init__(
        self, captured: Capture, example: tuple[Tensor, ...], device: torch.device, power: float
    ) -> None:
        self._captured = captured
        self._example = example
        self._device = device
        self._power = power
        self._narrow: dict[Plan, nn.Module] = {}
        self._modules: dict[Plan, nn.Module] = {}
        self._costs: dict[tuple[Plan, Train, Contrast | None], Cost] = {}

    def load(self, selection: Selection, values: Mapping[str, Tensor]) -> nn.Module:
        """The module of these windows' widths, holding ``values`` under the scale rule. The next call with
        the same widths fills the same module anew."""
        widths = widths_of(selection)
        module = self._module(widths)
        tensors = tensors_of(module)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(values[name])
            for name, factor in self._factors(widths).items():
                tensors[name].mul_(factor)
        return module

    def scaled(self, selection: Selection, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of ``values`` under the scale rule: what ``load`` puts into the module."""
        factors = self._factors(widths_of(selection))
        return {n: value * factors[n] if n in factors else value.clone() for n, value in values.items()}

    def unload(self, selection: Selection, module: nn.Module) -> dict[str, Tensor]:
        """Copies of the module's parameters as values of the full model, the scale rule undone."""
        factors = self._factors(widths_of(selection))
        return {name: p.detach() / factors.get(name, 1.0) for name, p in module.named_parameters()}

    def parameters(self, widths: Widths) -> int:
        """Number of parameters at these widths."""
        return sum(p.numel() for p in self._unset(widths).parameters())

    @property
    def axes(self) -> AxisMap:
        """Which axes the full model's tensors follow."""
        return self._captured.axes

    def cost(self, widths: Widths, config: Train, contrast: Contrast | None = None) -> Cost:
        """What training a sub-model of these widths costs."""
        key = (_plan(widths), config, contrast)
        if key not in self._costs:
            self._costs[key] = cost(self._unset(widths), self._example, config, contrast)
        return self._costs[key]

    def _factors(self, widths: Widths) -> dict[str, float]:
        return scale.factors(self._captured.axes, widths, self._power)

    def _module(self, widths: Widths) -> nn.Module:
        key = _plan(widths)
        if key not in self._modules:
            self._modules[key] = materialised(copy.deepcopy(self._unset(widths)), self._device)
        return self._modules[key]

    def _unset(self, widths: Widths) -> nn.Module:
        """The module without values: its parameters take no memory."""
        key = _plan(widths)
        if key not in self._narrow:
            self._narrow[key] = self._captured.narrow(widths)
        return self._narrow[key]


def _plan(widths: Widths) -> Plan:
    return tuple(sorted(widths.items()))


def widths_of(selection: Selection) -> dict[str, int]:
    """Number of units of each axis that the windows name."""
    return {axis: count(units) for axis, units in selection.items()}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def materialised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its tensors on the meta device made real, unset; the others are moved. Ties stay."""
    made: dict[Tensor, Tensor] = {}

    def real(tensor: Tensor) -> Tensor:
        if tensor not in made:
            moved = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
            keeps = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(moved.detach(), tensor.requires_grad) if keeps else moved
        return made[tensor]

    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = real(tensor)  # type: ignore[assignment]
    return module
