"""The points of a round at which a test may stop a peer: the one place that knows of such tests."""

import os
import signal
import threading
from typing import Literal

Point = Literal["pull", "train", "push", "stage", "commit"]
"""Before pull; in training; in the middle of push; before commit (merged, shards being written); after
commit."""

VARIABLE = "MSFUSION_STOP_AT"
"""``POINT:ROUND:SIGNAL``, for example ``push:2:SIGKILL``: what a peer sends itself there, once. With ``HOLD``
in place of a signal it says so, and the thread that is there goes no further; the others do."""


def reached(point: Point, round: int) -> None:
    """Does nothing unless the environment says that this process ends or stops here."""
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted.startswith(f"{point}:{round}:"):
        del os.environ[VARIABLE]
        kind = wanted.rpartition(":")[2]
        if kind == "HOLD":
            print(f"holds at {point}", flush=True)
            threading.Event().wait()
        os.kill(os.getpid(), getattr(signal, kind))
