"""The points of a round at which a test may stop a peer: the one place that knows of such tests."""

import os
import signal
import time
from pathlib import Path
from typing import Literal

Point = Literal["pull", "train", "push", "stage", "commit"]
"""Before pull; in training; in the middle of push; before commit (merged, shards being written); after
commit."""

VARIABLE = "MSFUSION_STOP_AT"
"""``POINT:ROUND:SIGNAL``, for example ``push:2:SIGKILL``: what a peer sends itself there, once. With a path
in place of the signal it says that it holds, and the thread that is there waits until the file exists; the
others go on."""


def reached(point: Point, round: int) -> None:
    """Does nothing unless the environment says that this process ends, stops or holds here."""
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted.startswith(f"{point}:{round}:"):
        del os.environ[VARIABLE]
        what = wanted.split(":", 2)[2]
        if what.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, what))
            return
        print(f"holds at {point}", flush=True)
        while not Path(what).exists():
            time.sleep(0.05)
