"""The points of a round at which a test may stop a peer: the one place that knows of such tests."""

import os
import signal
from typing import Literal

Point = Literal["pull", "train", "push", "stage", "commit"]
"""Before pull; in training; in the middle of push; before commit (merged, shards being written); after
commit."""

VARIABLE = "MSFUSION_STOP_AT"
"""``POINT:ROUND:SIGNAL``, for example ``push:2:SIGKILL``: what a peer sends itself there, once."""


def reached(point: Point, round: int) -> None:
    """Does nothing unless the environment says that this process ends or stops here."""
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted.startswith(f"{point}:{round}:"):
        del os.environ[VARIABLE]
        os.kill(os.getpid(), getattr(signal, wanted.rpartition(":")[2]))
