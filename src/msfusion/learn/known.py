"""Models whose code is known: this project's own, and those of PyTorch's modules alone."""

from torch import nn

_KNOWN = ("msfusion.models.", "torch.nn.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_known(module: nn.Module) -> bool:
    """Whether all code that runs in a step is this project's or PyTorch's."""
    return all(
        f"{type(part).__module__}.".startswith(_KNOWN)
        and "forward" not in vars(part)
        and not any(getattr(part, hooks) for hooks in _HOOKS)
        for part in module.modules()
    )
