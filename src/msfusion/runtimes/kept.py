"""What a participant remembers of the rounds before."""

import re
from pathlib import Path

import torch

from msfusion.learn.carried import Carried
from msfusion.learn.memory import Memory
from msfusion.learn.shards import loaded
from msfusion.runtimes import checkpoint


class Kept:
    """Memories of one participant in files, the last two: a round may be repeated.

    folder: of this participant and run alone.
    device: where memories go that are read.
    """

    def __init__(self, folder: Path, number: int, device: torch.device) -> None:
        self._folder, self._number, self._device = folder, number, device

    def before(self, round: int) -> Memory | None:
        """What this participant kept when it last trained before a round."""
        kept = [path for path in self._files() if int(path.stem) < round]
        return Carried.restored(loaded(kept[-1]), self._device).previous.get(self._number) if kept else None

    def keep(self, round: int, memory: Memory) -> None:
        """Keep a memory for the next rounds."""
        path = self._folder / f"{round:06d}.safetensors"
        checkpoint.write(path, Carried({self._number: memory}).state(), {})
        kept = self._files()
        at = kept.index(path)
        for old in (*kept[: max(0, at - 1)], *kept[at + 1 :]):  # later rounds are of a past that is gone
            old.unlink()

    def _files(self) -> list[Path]:
        """Oldest first; what the system or the user put beside them is let be."""
        own = (path for path in self._folder.glob("*.safetensors") if re.fullmatch("[0-9]+", path.stem))
        return sorted(own, key=lambda path: int(path.stem))
