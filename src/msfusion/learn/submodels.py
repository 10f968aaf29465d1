"""Runnable sub-models: one narrow module per width plan, filled with the values of any window."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from msfusion.capture import Capture
from msfusion.capture.graph import named_tensors
from msfusion.core import apart, scale
from msfusion.core.axes import AxisMap, Selection, Widths, count
from msfusion.learn.contrast import Contrast
from msfusion.learn.cost import Cost, changing_buffers, cost, counters, least_batch, logits, takes
from msfusion.learn.local import Train
from msfusion.learn.memory_layout import lay_out

BACKEND: Any = "inductor"
"""What torch.compile makes code with."""

Plan = tuple[tuple[str, int], ...]
"""Widths in a fixed order, as a key."""


class SubModels:
    """Makes and keeps the narrow modules of a captured model.

    A window that moves keeps its width, so a module is built, and compiled, once per width plan, not once per
    round.

    compiled: modules that train are compiled, for each shape of a batch when it first comes.
    free_layout: nobody but the model looks at how what it makes lies in memory (``known.lay_out``).
    apart: windows share no unit, and weights between them are 0 (core/apart.py).
    heard: examples of a step whose logits participants hear and keep (complement.py); 0 for none.
    compared: modules of which it is known that the contrastive loss can compare what they make of examples.
    """

    def __init__(
        self,
        captured: Capture,
        example: tuple[Tensor, ...],
        device: torch.device,
        power: float,
        *,
        compiled: bool = False,
        free_layout: bool = False,
        apart: bool = False,
        heard: int = 0,
    ) -> None:
        self.compiled = compiled
        self._free_layout = free_layout
        self.compared: set[nn.Module] = set()
        self._captured = captured
        self._example = example
        self.device = device
        self._power, self._apart, self._heard = power, apart, heard
        self._narrow: dict[Plan, nn.Module] = {}
        self._shapes: dict[Plan, dict[str, Tensor]] = {}
        self._modules: dict[Plan, _Held] = {}
        self._factors: dict[Plan, dict[str, scale.Factor]] = {}
        self._rounded: dict[Plan, frozenset[str]] = {}
        self._rates: dict[tuple[Plan, int], dict[str, float]] = {}
        self._least: dict[Plan, int] = {}
        self._logits: dict[Plan, Tensor] = {}
        self._costs: dict[tuple[Plan, Train, Contrast | None], Cost] = {}

    def room(self, selection: Selection) -> Mapping[str, Tensor]:
        """Where values for ``load`` may be put: the module's own tensors, which are then not copied. Those
        that ``unload`` has to see once more get another place."""
        widths = widths_of(selection)
        held = self._held(widths)
        for name in self.rounded(widths) - held.spare.keys():
            held.spare[name] = torch.empty_like(held.tensors[name])
        return {**held.tensors, **held.spare}

    def load(self, selection: Selection, values: Mapping[str, Tensor]) -> nn.Module:
        """The module of these windows' widths, holding ``values`` under the scale rule. The next call with
        the same widths fills the same module anew."""
        held = self._held(widths_of(selection))
        held.put_back()
        with torch.no_grad():
            for name, tensor in held.tensors.items():
                if values[name] is not tensor:
                    tensor.copy_(values[name])
            scale.scale_(held.tensors, self.factors(widths_of(selection)))
        return held.module

    def scaled(self, selection: Selection, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``values`` under the scale rule, where the module is: what ``load`` puts into it. Parameters that
        the rule leaves alone are not copied; buffers are, as a forward pass may change them."""
        widths = widths_of(selection)
        factors, shapes = self.factors(widths), self.shapes(widths)
        lent = {name for name, like in shapes.items() if isinstance(like, nn.Parameter)} - factors.keys()
        own = {name: value.to(self.device, copy=name not in lent) for name, value in values.items()}
        scale.scale_(own, factors)
        return own

    def unload(
        self, selection: Selection, given: Mapping[str, Tensor], *, lend: bool = False
    ) -> dict[str, Tensor]:
        """What the module of these windows' widths holds of trained parameters, as values of the full model:
        the scale rule undone.

        given: the values that it was filled with.
        lend: no copies, but the module's own tensors, changed in place and as they lie in memory: they hold
        until it is filled anew.
        """
        widths = widths_of(selection)
        own = self._held(widths).tensors
        values = {name: own[name] for name in self.trained(widths)}
        if not lend:
            plain = torch.contiguous_format
            values = {name: value.clone(memory_format=plain) for name, value in values.items()}
        scale.undo_(values, self.factors(widths), given, self.rounded(widths))
        return values

    def parameters(self, widths: Widths) -> int:
        """Number of parameters at these widths."""
        return sum(p.numel() for p in self._unset(widths).parameters())

    def shapes(self, widths: Widths) -> Mapping[str, Tensor]:
        """Parameters and buffers at these widths, without values."""
        key = plan_of(widths)
        if key not in self._shapes:
            self._shapes[key] = named_tensors(self._unset(widths))
        return self._shapes[key]

    def trained(self, widths: Widths) -> dict[str, Tensor]:
        """The trained parameters at these widths, without values: what participants hand over."""
        shapes = self.shapes(widths).items()
        return {name: t for name, t in shapes if isinstance(t, nn.Parameter) and t.requires_grad}

    def changing_buffers(self) -> list[str]:
        """Buffers that training changes, but for those of batch norm."""
        return changing_buffers(self._unset({}), self._example)

    def logits(self, widths: Widths) -> Tensor:
        """The logits that participants hear of a step, without values."""
        key = plan_of(widths)
        if key not in self._logits:
            self._logits[key] = logits(self._unset(widths), self._example, self._heard)
        return self._logits[key]

    def takes(self, inputs: Tensor) -> bool:
        """Whether the full model takes inputs of this shape in eval mode, seen without values."""
        return takes(self._unset({}), inputs)

    def counters(self) -> list[str]:
        """Attributes in which the model counts its forward passes."""
        return counters(self._unset({}), self._example)

    @property
    def axes(self) -> AxisMap:
        """Which axes the full model's tensors follow."""
        return self._captured.axes

    def cost(self, widths: Widths, config: Train, contrast: Contrast | None = None) -> Cost:
        """What training a sub-model of these widths costs; where it cannot train on single examples, that of
        batches of two."""
        if config.batch == 1:
            config = replace(config, batch=self.least_batch(widths))
        key = (plan_of(widths), config, contrast)
        if key not in self._costs:
            counted = cost(self._unset(widths), self._example, config, contrast)
            if contrast:  # what was received is compared under the scale rule
                scaled = self.factors(widths).keys() & self.shapes(widths).keys()
                more = sum(self.shapes(widths)[name].nbytes for name in scaled)
                counted = replace(counted, memory_bytes=counted.memory_bytes + more)
            if self._heard:
                more = 2 * config.steps * self.logits(widths).nbytes  # as heard, and as said
                counted = replace(counted, memory_bytes=counted.memory_bytes + more)
            self._costs[key] = counted
        return self._costs[key]

    def least_batch(self, widths: Widths) -> int:
        """How many examples a batch must have to train a sub-model of these widths."""
        key = plan_of(widths)
        if key not in self._least:
            self._least[key] = least_batch(self._unset(widths), self._example)
        return self._least[key]

    @property
    def example_bytes(self) -> int:
        """Bytes of the inputs of one example."""
        return sum(part[:1].nbytes for part in self._example)

    def factors(self, widths: Widths) -> dict[str, scale.Factor]:
        """Parameter -> its factor of the scale rule, where that is not 1."""
        key = plan_of(widths)
        if key not in self._factors:
            axes = self._captured.axes
            found = apart.factors(axes, widths) if self._apart else scale.factors(axes, widths, self._power)
            on_device = torch.empty((), dtype=torch.float64, device=self.device)
            self._factors[key] = {name: scale.on(factor, on_device) for name, factor in found.items()}
        return self._factors[key]

    def rounded(self, widths: Widths) -> frozenset[str]:
        """Trained parameters by whose factor values cannot be multiplied and divided without rounding."""
        key = plan_of(widths)
        if key not in self._rounded:
            self._rounded[key] = scale.rounded(self.factors(widths)) & self.trained(widths).keys()
        return self._rounded[key]

    def rates(self, widths: Widths, config: Train) -> dict[str, float]:
        """Parameter -> what its learning rate is multiplied by, where that is not 1."""
        if config.lr_fan_in is None:
            return {}
        key = (plan_of(widths), config.lr_fan_in)
        if key not in self._rates:
            self._rates[key] = scale.rates(self._captured.axes, widths, config.lr_fan_in)
        return self._rates[key]

    def module(self, widths: Widths) -> nn.Module:
        """A new module of these widths, its tensors unset."""
        return materialised(copy.deepcopy(self._unset(widths)), self.device)

    def _held(self, widths: Widths) -> "_Held":
        key = plan_of(widths)
        if key not in self._modules:
            module = self.module(widths)
            if self._free_layout:
                lay_out(module, self._example[0].to(self.device))
            if self.compiled:
                module.compile(backend=compiler(), dynamic=False)
            self._modules[key] = _Held.of(module)
        return self._modules[key]

    def _unset(self, widths: Widths) -> nn.Module:
        """The module without values: its parameters take no memory."""
        key = plan_of(widths)
        if key not in self._narrow:
            # Scaled where a method scales so that sub-models and the full model agree.
            self._narrow[key] = self._captured.narrow(widths, scaled=self._power == 1)
        return self._narrow[key]


@dataclass(frozen=True)
class _Held:
    """A module, its parameters and buffers.

    spare: room for the values of some of them, as they are without the scale rule.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    _buffers: Sequence[tuple[nn.Module, str, Tensor | None]]
    spare: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(module: nn.Module) -> "_Held":
        tensors = {name: tensor.detach() for name, tensor in named_tensors(module).items()}
        buffers = [(part, *own) for part in module.modules() for own in part._buffers.items()]
        return _Held(module, tensors, buffers)

    def put_back(self) -> None:
        """Undo that a forward pass has replaced buffers by others."""
        for owner, name, buffer in self._buffers:
            owner._buffers[name] = buffer


def compiler() -> Any:
    """The backend for torch.compile, which compiles the same code for every width plan: all share that of one
    class, or of vmap, and by default only eight would be served."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return BACKEND


def plan_of(widths: Widths) -> Plan:
    """Widths as a key."""
    return tuple(sorted(widths.items()))


def widths_of(selection: Selection) -> dict[str, int]:
    """Number of units of each axis that the windows name."""
    return {axis: count(units) for axis, units in selection.items()}


def trained_names(module: nn.Module) -> list[str]:
    """Names of the parameters that want a gradient, in the order in which an optimizer has them."""
    return [name for name, p in module.named_parameters() if p.requires_grad]


def transient(module: nn.Module) -> set[str]:
    """Names of the buffers that no file of the model holds. A ``state_dict`` of the model's own would not
    tell: it may rename tensors, or leave out those that its user does not store."""
    parts = module.named_modules()
    return {f"{name}.{own}".lstrip(".") for name, part in parts for own in part._non_persistent_buffers_set}


def stored(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, tied ones once."""
    without = transient(module)
    return {name: tensor for name, tensor in named_tensors(module).items() if name not in without}


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
