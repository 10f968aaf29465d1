"""Runs captured graphs on a module's tensors: in the mode, on the device and at the sizes of the call."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msfusion.errors import UserError


@dataclass
class Runner:
    """Runs the graph of the mode that a module is in on that module's tensors.

    graphs, programs: training -> the resized graph, and the program that it was made from.
    example: the inputs that were captured, whose form every call must have.
    fixed: per flat input, the sizes that the graphs hold as numbers: dimension -> size.
    again: example inputs of other sizes -> their runner, or None where there is none.
    placed: the graphs on the devices that they have run on.
    others: runners at other sizes.
    """

    graphs: Mapping[bool, torch.fx.GraphModule]
    programs: Mapping[bool, torch.export.ExportedProgram]
    example: tuple[tuple[Any, ...], dict[str, Any]]
    fixed: Sequence[Mapping[int, int]]
    again: Callable[[tuple[Any, ...], dict[str, Any]], "Runner | None"]
    placed: dict[tuple[bool, torch.device], torch.fx.GraphModule] = field(default_factory=dict)
    others: "dict[tuple[tuple[int, ...], ...], Runner | None]" = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Runner":
        """Copies of the module share it: it holds none of the module's tensors."""
        return self

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        flat = self.flat_inputs(args, kwargs)
        runner = self.at_sizes_of(flat)
        return runner.run(module, flat, runner.on(module.training, _device(flat)), module.training)

    def run(self, module: nn.Module, flat: list[Any], graph: Any, training: bool) -> Any:
        """Call ``graph`` with the tensors of the module, the captured constants and the inputs."""
        program = self.programs[training]
        tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        given = iter(flat)
        inputs: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.target in tensors:
                inputs.append(tensors[spec.target])
            elif spec.target is not None:
                constant = program.constants[spec.target]
                inputs.append(constant.to(_device(flat)) if isinstance(constant, Tensor) else constant)
            else:
                inputs.append(next(given))
        out_spec = program.call_spec.out_spec
        assert out_spec is not None
        return pytree.tree_unflatten(list(graph(*inputs)), out_spec)

    def flat_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs in the order of the graph; ``UserError`` where they are not of the captured form."""
        example_args, example_kwargs = self.example
        if len(args) != len(example_args) or kwargs.keys() != example_kwargs.keys():
            raise self._other_form()
        ordered = {name: kwargs[name] for name in example_kwargs}
        flat, spec = pytree.tree_flatten((args, ordered))
        example, example_spec = pytree.tree_flatten(self.example)
        if spec != example_spec:
            raise self._other_form()
        for value, captured in zip(flat, example, strict=True):
            alike = value.ndim == captured.ndim if isinstance(captured, Tensor) else value == captured
            if not alike:
                raise self._other_form()
        return flat

    def at_sizes_of(self, flat: list[Any]) -> "Runner":
        """The runner for inputs of these sizes, made when they come first; ``UserError`` where the model
        cannot have them."""
        key = tuple(tuple(value.shape[d] for d in own) for value, own in zip(flat, self.fixed, strict=True))
        if key == tuple(tuple(own.values()) for own in self.fixed):
            return self
        if key not in self.others:
            self.others[key] = self.again(*self._example_of(flat))
        found = self.others[key]
        if found is None:
            raise UserError(
                f"expected inputs of the size {_shapes(pytree.tree_leaves(self.example))} that was captured,"
                f" or of another that the model can have, got {_shapes(flat)}; capture the model with inputs"
                " of the size it is trained with"
            )
        return found

    def _example_of(self, flat: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The captured inputs in other sizes; those that the graphs have as variables stay."""
        captured, spec = pytree.tree_flatten(self.example)
        pairs = zip(captured, flat, self.fixed, strict=True)
        new = [_resized(old, value, own) if own else old for old, value, own in pairs]
        example: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(new, spec)
        return example

    def _other_form(self) -> UserError:
        args, kwargs = self.example
        form = [f"{len(args)} positional"] + [f"{name}=" for name in kwargs]
        return UserError(
            f"expected inputs of the form that was captured ({', '.join(form)}, and other values than tensors"
            " as there), got others; capture the model with inputs of the form it is trained with"
        )

    def on(self, training: bool, device: torch.device) -> torch.fx.GraphModule:
        """The graph with the devices that it names replaced by the one it runs on."""
        key = training, device
        if key not in self.placed:
            graph = copy.deepcopy(self.graphs[training])
            for module in graph_modules(graph):
                for node in module.graph.nodes:
                    node.args, node.kwargs = pytree.tree_map_only(
                        torch.device, lambda _: device, (tuple(node.args), dict(node.kwargs))
                    )
                module.recompile()
            self.placed[key] = graph
        return self.placed[key]


def _resized(captured: Tensor, like: Tensor, dims: Collection[int]) -> Tensor:
    return captured.new_zeros([like.shape[d] if d in dims else n for d, n in enumerate(captured.shape)])


def _shapes(flat: list[Any]) -> str:
    return ", ".join(str(tuple(value.shape)) for value in flat if isinstance(value, Tensor))


def _device(flat: list[Any]) -> torch.device:
    return next((value.device for value in flat if isinstance(value, Tensor)), torch.device("cpu"))


def graph_modules(top: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    """The graph and those nested in it."""
    return [m for m in top.modules() if isinstance(m, torch.fx.GraphModule)]
