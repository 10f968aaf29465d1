"""Which modes of a model have to be captured, found by rehearsals.

A rehearsal runs the forward on tensors that hold no memory and notes what it calls, which takes a tenth of
the time of an export. Where train mode calls the same as eval mode, but for dropout, one export serves for
both.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from msfusion.errors import UserError

from .graph import (
    Graph,
    capture_graph,
    check_can_be_cut,
    device_of,
    fake_copy,
    fake_inputs,
    first_line,
    quiet,
)

_DROPOUT = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
}
"""Treat all units alike, and are there in train mode only."""

_TOLD_THE_MODE = {
    *("batch_norm", "instance_norm", "multi_head_attention_forward", "scaled_dot_product_attention"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "rrelu"),
}
"""Functions of PyTorch with the mode, or the share dropped in it, among their arguments."""

Call = tuple[Any, ...]
"""A function, and its arguments: of tensors the shapes."""


def capture_modes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, logits_alone: bool = False
) -> list[Graph]:
    """The graph in eval mode, and that in train mode if that is another program.

    ``UserError`` for a model that cannot be captured in eval mode; a warning where train mode alone cannot,
    as with layers that are left out by chance, for which eval mode then speaks.
    """
    check_can_be_cut(model)
    eval_calls, train_calls = (_calls(model, args, kwargs, training=mode) for mode in (False, True))
    graph = capture_graph(model, args, kwargs, logits_alone=logits_alone)
    if eval_calls is not None and eval_calls == train_calls:
        return [graph]
    try:
        return [graph, capture_graph(model, args, kwargs, training=True, logits_alone=logits_alone)]
    except UserError as error:
        warnings.warn(
            "train mode is taken for what eval mode is, as torch.export cannot capture it"
            f" ({first_line(error.__cause__ or error)})",
            stacklevel=2,
        )
        return [graph]


class _Noted(TorchFunctionMode):
    """Notes calls. own: id -> name of the trained parameters of the model that the copy was made from."""

    def __init__(self, own: Mapping[int, str]) -> None:
        super().__init__()
        self.own = own
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        leaves = pytree.tree_leaves((tuple(args), dict(kwargs or {})))
        for leaf in leaves:
            if isinstance(leaf, nn.Parameter) and not isinstance(leaf, FakeTensor) and id(leaf) in self.own:
                raise _out_of_reach(self.own[id(leaf)])
        if not _is_left_out(func, leaves):
            told = getattr(func, "__name__", "") in _TOLD_THE_MODE
            self.calls.append((func, *(_noted(x) for x in leaves if isinstance(x, torch.Tensor) or not told)))
        return func(*args, **(kwargs or {}))


def _is_left_out(func: Any, leaves: Sequence[Any]) -> bool:
    """Dropout, looks at attributes of tensors, and the count of batches that a batch norm keeps."""
    counts = func is torch.Tensor.add_ and leaves[0].ndim == 0 and not leaves[0].is_floating_point()
    return func in _DROPOUT or getattr(func, "__name__", "") == "__get__" or counts


def _noted(leaf: Any) -> Any:
    return tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else repr(leaf)


def _out_of_reach(name: str) -> UserError:
    return UserError(
        f"expected a forward that reads its parameters from its own modules, got {name} through a closure or"
        " a global, which in copies of the module stays that of the original and is never trained; make the"
        " function that reads it a method"
    )


def _calls(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool
) -> list[Call] | None:
    """What the forward calls in order; None where it does not run on tensors without values. ``UserError``
    where it reads parameters of the model itself that are not those of the copy it runs in."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = fake_copy(model, mode, device_of(model, (args, kwargs))).train(training)
    fake_args, fake_kwargs = fake_inputs((args, dict(kwargs)), mode)
    noted = _Noted({id(p): name for name, p in model.named_parameters() if p.requires_grad})
    try:
        with torch.no_grad(), _compiling_state_context(), mode, quiet(), noted:
            shadow(*fake_args, **fake_kwargs)
    except UserError:
        raise
    except Exception:  # whatever a forward raises: the export says what it is
        return None
    return noted.calls
