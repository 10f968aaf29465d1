"""The captured graph: ``torch.export`` of a model whose tensors hold no memory."""

import copy
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.export.graph_signature import InputKind
from torch.fx import config as fx_config
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from msfusion.errors import UserError

_KNOWN_WARNINGS = (
    r".*is deprecated.*",
    r".*Was not able to add assertion.*",
    r".*non-leaf Tensor.*",
    r".*LeafSpec.*",
    r"The tensor attributes .* were assigned during export",
)

_UNKNOWN_OUTPUT = re.compile(r"Found <class '(.+?)'> in output")

_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
)


# Builds of PyTorch for GPUs pretend to have one while tensors are fake. Autograd that is started then keeps
# threads for it, and no forked process could train any more (runtimes/workers.py): it is started before.
with torch.inference_mode(False):
    torch.ones((), requires_grad=True).backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Graph:
    """A captured model.

    program: the exported program, cleaned of dead code.
    inputs: placeholder -> name of the parameter or buffer that it stands for; other inputs are missing.
    training: it was captured in train mode.
    logits_alone: of a mapping with ``logits`` nothing else reaches the loss.
    """

    program: torch.export.ExportedProgram
    inputs: Mapping[torch.fx.Node, str]
    training: bool
    logits_alone: bool

    @property
    def top(self) -> torch.fx.Graph:
        graph: torch.fx.Graph = self.program.graph
        return graph

    def modules(self) -> Iterator[torch.fx.GraphModule]:
        """The graph and those nested in it (regions under autocast or no_grad)."""
        top = self.program.graph_module
        return (m for m in top.modules() if isinstance(m, torch.fx.GraphModule))

    def nodes(self) -> Iterator[torch.fx.Node]:
        for module in self.modules():
            yield from module.graph.nodes


def capture_graph(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    training: bool = False,
    symbolic: bool = False,
    lines: bool = True,
    logits_alone: bool = False,
) -> Graph:
    """Export the model on tensors that hold no memory; the model itself is not touched.

    symbolic: the sizes of the inputs are variables, where the model allows it.
    lines: operations know the line that made them (``source_line``); without, it takes a sixth less time.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv() if symbolic else None)
    shadow = fake_copy(model, mode, device_of(model, (args, kwargs))).train(training)
    fake_args, fake_kwargs = (args, dict(kwargs)) if symbolic else fake_inputs((args, dict(kwargs)), mode)
    dynamic = _all_dynamic(shadow, args, kwargs) if symbolic else None
    try:
        with torch.no_grad(), quiet(), _recording(lines):
            program = torch.export.export(
                shadow, fake_args, fake_kwargs, dynamic_shapes=dynamic, strict=False
            )
    except Exception as error:
        raise _not_captured(error, args, kwargs) from error
    program.graph.eliminate_dead_code()
    graph = Graph(program, _tensor_inputs(program), training, logits_alone)
    _check_sizes(graph)
    return graph


def _not_captured(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> UserError:
    if found := _UNKNOWN_OUTPUT.search(str(error)):
        kind = found[1].rpartition(".")[2]
        what = "set model.config.use_cache = False" if kind.endswith("Cache") else "return one of these"
        return UserError(
            "expected a model that returns tensors, or tuples, named tuples, lists, dicts or ModelOutputs of"
            f" them, got {kind}; {what}"
        )
    return UserError(
        f"expected a model that torch.export can capture with example inputs of {_shapes(args, kwargs)},"
        f" got at {user_line(error)} {type(error).__name__}: {first_line(error)}; change that line of the"
        " model, or its inputs"
    )


def _check_sizes(graph: Graph) -> None:
    """Raise UserError where an operation makes a tensor whose sizes depend on values."""
    for node in graph.nodes():
        values = pytree.tree_leaves(node.meta.get("val"))
        sizes: list[Any] = [size for t in values if isinstance(t, torch.Tensor) for size in t.shape]
        if any(not isinstance(size, int) and size.node.hint is None for size in sizes):
            raise UserError(
                f"expected sizes that follow from those of the inputs, got at {source_line(node)} one that"
                " depends on values, as where a mask is an index; compute all and select with torch.where"
            )


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """``2x1x8x8 (float32)`` for every tensor among the inputs."""
    tensors = [t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, torch.Tensor)]
    sizes = ["x".join(map(str, t.shape)) or "no dimension" for t in tensors]
    types = [str(t.dtype).removeprefix("torch.") for t in tensors]
    return " and ".join(f"{size} ({type})" for size, type in zip(sizes, types, strict=True)) or "no tensor"


def check_can_be_cut(model: nn.Module) -> None:
    """Raise UserError for modules whose tensors or gradients have no shape, or no memory, of their own."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise UserError(
                f"expected parameters with sizes, got a lazy {name}: run the model once on example inputs"
            )
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UserError(
                f"expected parameters without hooks on their gradients, which copies of the model do not"
                f" have, got one on {name}: remove it"
            )
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse and part.weight.requires_grad:
            raise UserError(
                f"expected dense gradients, got {type(part).__name__} {name} with sparse ones: make it with "
                "sparse=False"
            )


def _all_dynamic(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Every dimension of every tensor input may vary, but of images alone only the batch: heights and widths
    that vary cost a minute where a model cuts them into windows."""
    tensors = [t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, torch.Tensor)]
    images = len(tensors) == 1 and tensors[0].ndim >= 4 and tensors[0].is_floating_point()

    def spec(value: Any) -> Any:
        return dict.fromkeys(range(1 if images else value.ndim), Dim.AUTO) if torch.is_tensor(value) else None

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: pytree.tree_map(spec, value) for name, value in bound.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of ``torch.export`` about itself, and without what it logs and prints of forwards
    that fail: it raises, too, and a candidate that does not fit is no news."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stderr(io.StringIO()))
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(setattr, logger, "disabled", logger.disabled)
            logger.disabled = True
        yield


@contextmanager
def _recording(lines: bool) -> Iterator[None]:
    before = getattr(fx_config, "do_not_emit_stack_traces", False)
    fx_config.do_not_emit_stack_traces = not lines
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = before


def _tensor_inputs(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, str]:
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    pairs = zip(program.graph_signature.input_specs, placeholders, strict=True)
    return {node: spec.target for spec, node in pairs if spec.kind in kinds and spec.target is not None}


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else "no message"


def user_line(error: BaseException) -> str:
    """``file:line`` of the innermost frame outside of PyTorch, code that it writes, and this package."""
    frames = traceback.extract_tb(error.__traceback__)
    known = ("/torch/", "/msfusion/capture/", "<")
    foreign = [f for f in frames if not any(part in f.filename for part in known)]
    return f"{foreign[-1].filename}:{foreign[-1].lineno}" if foreign else "a line of PyTorch's own modules"


def device_of(model: nn.Module, inputs: Any) -> torch.device:
    """Where the model is taken to run: the device of the first tensor that is not on meta."""
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    for tensor in (*model.parameters(), *model.buffers(), *tensors):
        if tensor.device.type != "meta":
            return tensor.device
    return torch.device("cpu")


def fake_copy(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> nn.Module:
    """A copy of the model whose parameters and buffers are fake; those on meta count as on ``device``."""

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        place = device if tensor.device.type == "meta" else tensor.device
        with mode:
            shape, stride = tuple(tensor.shape), tensor.stride()
            return torch.empty_strided(shape, stride, dtype=tensor.dtype, device=place)

    return copy_with(model, {id(t): fake(t) for t in named_tensors(model).values()})


def fake_inputs(inputs: Any, mode: FakeTensorMode) -> Any:
    return pytree.tree_map_only(torch.Tensor, mode.from_tensor, inputs)


def copy_with(model: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """Deep copy in which each parameter or buffer is replaced by ``tensors[id]``; ties stay ties."""
    memo: dict[int, Any] = {}
    for tensor in named_tensors(model).values():
        new = tensors[id(tensor)]
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = new
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"expected a model that copy.deepcopy can copy, got {type(error).__name__}: {first_line(error)};"
            " keep locks, files and tensors with gradients out of the attributes of its modules"
        ) from error


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, then buffers, by name; tied ones once, under their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def tied_names(model: nn.Module) -> dict[str, str]:
    """Other names of tied tensors -> their first name."""
    first = {id(tensor): name for name, tensor in reversed(named_tensors(model).items())}
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first[id(tensor)] for name, tensor in every if first[id(tensor)] != name}


def main_output(output: Any, *, logits_alone: bool) -> Any:
    """What reaches the loss: everything, or of a mapping with ``logits`` these alone."""
    return output["logits"] if logits_alone and isinstance(output, Mapping) and "logits" in output else output


def module_path(node: torch.fx.Node) -> str:
    """Name of the innermost module whose forward made the node; shared modules count under one name."""
    stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
    return str(stack[-1][0]).split("@")[0]


def source_line(node: torch.fx.Node) -> str:
    """``file:line`` of the user's code that made the node, as far as it is known; of graphs with lines."""
    lines = [line for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    if not lines:
        return "an unknown line"
    _, file, rest = lines[-1].split('"', 2)
    return f"{file}:{rest.split('line ')[1].split(',')[0]}"
