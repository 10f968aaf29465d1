"""Models without values: parameters on the meta device, buffers real.

A participant never allocates the full model. What it needs of it (names, shapes, ties, the forward) it gets
from a module whose parameters hold no memory; buffers (rotary frequencies, masks) are small and are computed
where the module is made, so they keep their values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from msfusion.errors import UserError

T = TypeVar("T")

_active: ContextVar[bool] = ContextVar("parameters_on_meta", default=False)

Registered = Callable[[nn.Parameter], nn.Parameter]
"""A parameter that a module is given -> the one that it keeps."""
_WANTS_VALUES = ("meta", "incompatible tensor type")
"""What errors say where code does with tensors on the meta device what only works with values."""


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made in the body keep their parameters on the meta device; the most memory taken at any time
    is that of one parameter. The body must not run in several threads at once."""
    token = _active.set(True)
    try:
        with registering(_without_values):
            yield
    finally:
        _active.reset(token)


def made_without_values(make: Callable[[], T]) -> T:
    """What ``make`` returns, with the parameters on the meta device; with values where the model's code looks
    at those of its parameters while it makes them, or gives them others through ``.data``."""
    try:
        with parameters_on_meta():
            return make()
    except (RuntimeError, NotImplementedError, UserError) as error:
        if not any(sign in str(error.__cause__ or error) for sign in _WANTS_VALUES):
            raise
        return make()


def without_values() -> bool:
    """Whether ``parameters_on_meta`` is in force: reading weights from a file would be in vain."""
    return _active.get()


@contextmanager
def registering(exchange: Registered) -> Iterator[None]:
    """Modules given a parameter in the body keep ``exchange(parameter)`` in its place."""

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else exchange(parameter)

    handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _without_values(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.is_meta or is_lazy(parameter):
        return parameter
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
