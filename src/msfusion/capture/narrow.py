"""A narrow copy of the user's module: parameters cut, attributes that hold sizes set to fit.

A module keeps sizes in attributes (``n_head``, ``embed_dim``) that its forward turns into views and splits.
Which of them have to change cannot be read from their names. The captured graph can tell: it says what each
operation must look like at the new widths. So a candidate copy is exported and compared with that, and where
it differs the module that differs first has an attribute changed, one that holds a size which must change
there. Nothing is guessed: a copy that does not arrive at the expected operations is not used.
"""

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from msfusion.core.axes import AxisMap, Widths, axes_of
from msfusion.errors import UserError

from .derive import Derived, Owed
from .describe import describe, described_sizes
from .graph import Graph, copy_with, module_path, named_tensors, source_line
from .graph_module import SymbolicGraphs, with_graph_forward
from .oracle import Mismatch, expectation, first_mismatch, numbers_in
from .resize import Change, Sizes, changes
from .rules.registry import CONVOLUTIONS, base_name

_ONE_PRODUCT = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Layers whose output, but for the bias, is linear in their input."""

_OF_THE_INPUT = {"linear", *CONVOLUTIONS}
"""The product of such a layer with its input."""

_MOST_EXPORTS = 40
_MOST_CANDIDATES = 8  # all of whose subsets are tried

_OWN_SIZES = ("groups", "num_groups", "normalized_shape")
"""Arguments of operations that PyTorch's own layers keep in an attribute of the same name."""

_SEQUENCES = (tuple, list, torch.Size)
"""Made from a list of what they hold; who knows what their subclasses are made from."""

_SIZED_LAYERS = (nn.modules.conv._ConvNd, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def narrow_copy(model: nn.Module, axes: AxisMap, widths: Widths) -> nn.Module:
    """Copy of the model, parameters and buffers that carry a cut axis narrow and on meta, other buffers
    copied; the attributes of its modules are as before."""
    cut = {name for name, width in widths.items() if width != axes.axes[name].size}
    new = {}
    for name, tensor in named_tensors(model).items():
        touched = any(axis in cut for dim in axes.tensors[name] for axis in axes_of(dim))
        if touched or isinstance(tensor, nn.Parameter):
            new[id(tensor)] = torch.empty(axes.shape(name, widths), dtype=tensor.dtype, device="meta")
        else:
            new[id(tensor)] = tensor.detach().clone()
    return copy_with(model, new)


@dataclass(frozen=True)
class Source:
    """What a narrow module is made from: the model, its graphs and their labels, example inputs."""

    model: nn.Module
    graphs: Sequence[Graph]
    derived: Derived
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    symbolic: SymbolicGraphs

    @property
    def axes(self) -> AxisMap:
        return self.derived.axes


def narrow_module(source: Source, widths: Widths, *, scaled: bool = False) -> nn.Module:
    """A runnable copy of the module at other widths: with its own forward where that follows, else with the
    captured graph in its place; ``UserError`` where neither can be had.

    scaled: products whose parameters cannot have the factor of the scale rule have it themselves.
    """
    module = narrow_copy(source.model, source.axes, widths)
    if all(width == source.axes.axes[name].size for name, width in widths.items()):
        return module
    sizes, found = Sizes(source.derived.names, widths), source.derived.found
    wanted = [change for graph in source.graphs for change in changes(found, graph.nodes(), sizes)]
    _set_own_sizes(module, wanted)
    describe(module)
    expected = [expectation(graph, found, sizes) for graph in source.graphs]
    search = _Search(source.model, module, _candidates(source.model, wanted))
    mismatch, others = None, None
    for _ in range(_MOST_EXPORTS):
        mismatch = first_mismatch(expected, module, source.args, source.kwargs, others=others or ())
        if mismatch is not None and mismatch.number and others is None:
            untouched = narrow_copy(source.model, source.axes, widths)
            _set_own_sizes(untouched, wanted)
            others = numbers_in(expected, untouched, source.args, source.kwargs)
            mismatch = first_mismatch(expected, module, source.args, source.kwargs, others=others)
        if mismatch is None:
            break
        if not search.change(mismatch.path):
            break
    owed = [one for one in source.derived.owed if one.factor(widths) != 1] if scaled else []
    if mismatch is None and _scales_inputs(module, owed, widths):
        return module
    plain = narrow_copy(source.model, source.axes, widths)
    replaced = with_graph_forward(plain, source.symbolic, widths, scaled=scaled)
    if replaced is not None:
        return replaced
    if mismatch is None:
        raise _unscalable(owed[0])
    # Once more with lines; what depends on chance may fit now.
    raise _refusal(first_mismatch(expected, module, source.args, source.kwargs, lines=True) or mismatch)


def _scales_inputs(module: nn.Module, owed: Sequence[Owed], widths: Widths) -> bool:
    """See that layers of one product scale their inputs; False, and nothing is changed, where another
    operation has to."""
    layers: dict[str, float] = {}
    for one in owed:
        own = base_name(one.node.target) in _OF_THE_INPUT  # type: ignore[arg-type]
        if not own or layers.setdefault(one.module, one.factor(widths)) != one.factor(widths):
            return False  # it is not the layer's product, or is another in train mode than in eval mode
    modules = dict(module.named_modules())
    kinds = [type_before_parametrizations(modules[layer]) for layer in layers if layer in modules]
    if len(kinds) < len(layers) or not set(kinds) <= set(_ONE_PRODUCT):
        return False
    for layer, factor in layers.items():
        modules[layer].register_forward_pre_hook(_Times(factor), with_kwargs=True)
    return True


@dataclass(frozen=True)
class _Times:
    """A hook that multiplies the input of a layer."""

    factor: float

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] * self.factor, *args[1:]), kwargs
        return args, {**kwargs, "input": kwargs["input"] * self.factor}


def _unscalable(owed: Owed) -> UserError:
    where = f"{source_line(owed.node)} (in {owed.module or 'the model itself'})"
    return UserError(
        "expected a model whose weights are read in one way, or whose captured graph can run in place of its "
        f"forward, but {where} reads one that is read elsewhere too; apply it by an nn.Linear there, or do "
        "not share it"
    )


def _refusal(mismatch: Mismatch) -> UserError:
    name = mismatch.path or "the model itself"
    return UserError(
        f"expected a forward that follows the sizes of its tensors, but {mismatch.line} (in {name}) does not"
        f" ({mismatch.text}); take sizes there from x.shape or from an attribute of the module"
    )


def _set_own_sizes(module: nn.Module, wanted: list[Change]) -> None:
    """Group counts and normalised shapes of PyTorch's own layers, which follow from the graph directly."""
    modules = dict(module.named_modules())
    for change in wanted:
        layer = modules.get(module_path(change.node))
        for name in set(_OWN_SIZES) & set(change.arguments):
            if isinstance(layer, _SIZED_LAYERS):
                value = change.arguments[name]
                setattr(layer, name, tuple(value) if isinstance(value, list) else value)


Candidate = tuple[str, Any]
"""An attribute of a module, with dots into its configuration or a child, and its new value."""


def _candidates(model: nn.Module, wanted: list[Change]) -> dict[str, list[Candidate]]:
    """Per module: attributes that hold a size which changes somewhere in that module's own forward."""
    table: dict[str, dict[int, set[int]]] = {}
    for change in wanted:
        sizes = table.setdefault(module_path(change.node), {})
        for old, new in change.changed:
            sizes.setdefault(old, set()).add(new)
    modules = dict(model.named_modules())
    found = {
        path: [c for key, value in _attributes(modules[path]) for c in _values(key, value, sizes)]
        for path, sizes in table.items()
        if path in modules
    }
    return {path: candidates for path, candidates in found.items() if candidates}


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes of a module, of its plain objects (configurations) and of its childless children."""
    own = _public(module)
    yield from own.items()
    for name, value in own.items():
        plain = hasattr(value, "__dict__") and not isinstance(value, nn.Module | torch.Tensor | type)
        if plain and not callable(value):
            yield from ((f"{name}.{key}", v) for key, v in vars(value).items() if not key.startswith("_"))
    for name, child in module.named_children():
        if next(child.children(), None) is None:
            yield from ((f"{name}.{key}", v) for key, v in _public(child).items())


def _public(module: nn.Module) -> dict[str, Any]:
    """Attributes whose value does not follow from the module's tensors or from the graph."""
    if isinstance(module, _SIZED_LAYERS):
        return {}
    known = described_sizes(module)
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in known}


def _values(key: str, value: Any, sizes: Mapping[int, set[int]]) -> Iterator[Candidate]:
    if _is_size(value, sizes):
        yield from ((key, new) for new in sorted(sizes[value]))
    elif isinstance(value, tuple | list) and any(_is_size(x, sizes) for x in value):
        make = getattr(value, "_make", type(value))  # the former of a named tuple
        if make in _SEQUENCES or make is not type(value):
            yield key, make([min(sizes[x]) if _is_size(x, sizes) else x for x in value])


def _is_size(value: Any, sizes: Mapping[int, set[int]]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in sizes


class _Search:
    """Changes attributes, the same way in all modules that are alike, trying each set of candidates once."""

    def __init__(self, model: nn.Module, module: nn.Module, candidates: dict[str, list[Candidate]]) -> None:
        self.original = dict(model.named_modules())
        self.modules = dict(module.named_modules())
        self.candidates = candidates
        self.options: dict[Any, list[tuple[int, ...]]] = {}

    def change(self, path: str) -> bool:
        """Try the next option for the module that differs, or the nearest one around it that has any left."""
        for owner in _self_and_parents(path):
            options = self._options(owner) if owner in self.candidates else []
            if options:
                self._apply(owner, options.pop(0))
                return True
        return False

    def _kind(self, path: str) -> Any:
        module = self.original[path]
        values = [(key, str(operator.attrgetter(key)(module)), str(v)) for key, v in self.candidates[path]]
        return type(module), tuple(values)

    def _options(self, path: str) -> list[tuple[int, ...]]:
        kind = self._kind(path)
        if kind not in self.options:
            keys = [key for key, _ in self.candidates[path]]
            sets = (c for n in _set_sizes(len(keys)) for c in combinations(range(len(keys)), n))
            self.options[kind] = [c for c in sets if len({keys[i] for i in c}) == len(c)]
        return self.options[kind]

    def _apply(self, path: str, chosen: tuple[int, ...]) -> None:
        kind = self._kind(path)
        for other in [p for p in self.candidates if self._kind(p) == kind]:
            for key, _ in self.candidates[other]:
                _assign(self.modules[other], key, operator.attrgetter(key)(self.original[other]))
            for i in chosen:
                _assign(self.modules[other], *self.candidates[other][i])


def _set_sizes(number: int) -> list[int]:
    """Sizes of the sets of candidates to try, in order; of many candidates only nearly all or nearly none."""
    if number <= _MOST_CANDIDATES:
        return list(range(number, 0, -1))
    return [number, number - 1, 1, 2]


def _self_and_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _assign(module: nn.Module, key: str, value: Any) -> None:
    """Set an attribute; one of a configuration is set in a copy that the module then has for itself."""
    owner, _, leaf = key.rpartition(".")
    target: Any = getattr(module, owner) if owner else module
    if isinstance(target, nn.Module):
        setattr(target, leaf, value)
    else:
        target = copy.copy(target)
        vars(target)[leaf] = value  # a frozen one takes it, too
        setattr(module, owner, target)
