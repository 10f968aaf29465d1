"""Train one PyTorch model together, each participant only a slice of its width.

The public names load on first use, so that reports and the command line's help do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msfusion.capture import axes as axes
    from msfusion.errors import UserError as UserError
    from msfusion.learn.adapt import Adapt as Adapt
    from msfusion.learn.contrast import Contrast as Contrast
    from msfusion.learn.local import Train as Train
    from msfusion.report import write_report as write_report
    from msfusion.runtimes.run import Run as Run
    from msfusion.runtimes.simulate import simulate as simulate
    from msfusion.runtimes.simulation import Result as Result

_HOMES = {
    "Adapt": "msfusion.learn.adapt",
    "Contrast": "msfusion.learn.contrast",
    "Result": "msfusion.runtimes.simulation",
    "Run": "msfusion.runtimes.run",
    "Train": "msfusion.learn.local",
    "UserError": "msfusion.errors",
    "axes": "msfusion.capture",
    "simulate": "msfusion.runtimes.simulate",
    "write_report": "msfusion.report",
}

__all__ = ["Adapt", "Contrast", "Result", "Run", "Train", "UserError", "axes", "simulate", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'msfusion' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
