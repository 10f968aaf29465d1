"""The same training under Flower: a ServerApp that merges and stores, ClientApps that train.

Flower itself is imported on first use of an app only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from msfusion.errors import missing
from msfusion.flower.task import Settings, Task

if TYPE_CHECKING:
    from msfusion.flower.client import client_app as client_app
    from msfusion.flower.server import server_app as server_app

_HOMES = {"client_app": "msfusion.flower.client", "server_app": "msfusion.flower.server"}

__all__ = ["Settings", "Task", "client_app", "server_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'msfusion.flower' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flwr":
            raise
        raise missing("Flower", error, "msfusion[flower]") from None
