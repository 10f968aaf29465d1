"""Checkpoints of a run: one safetensors file, replaced as a whole, so that there is always a usable one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msfusion import records
from msfusion.errors import UserError
from msfusion.learn.shards import move

FILE_NAME = "checkpoint.safetensors"
FACTS = {"rounds_done", "settings", "axes", "examples"}
"""What a checkpoint says beside its tensors."""


def begun(directory: Path) -> bool:
    """Whether a run in the directory came as far as its first checkpoint."""
    return (directory / FILE_NAME).exists()


def fingerprint(text: str) -> str:
    """A short hash, for telling whether two maps or configurations are the same."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save(directory: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the checkpoint of ``directory``; a crash at any moment leaves the old one or the new one."""
    said = json.dumps(facts)
    write(directory / FILE_NAME, tensors, {"facts": said, "digest": digest(tensors, said)})


def digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """BLAKE2b over the facts and every tensor: its name, type, shape and bytes."""
    hasher = hashlib.blake2b(facts.encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file as a whole: it is the old one or the new one. UserError where it cannot be."""
    if path.is_dir():
        raise UserError(f"expected a file to write to, got the directory {path}: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"expected a directory for {path}, got a file in its way; name another") from None
    draft = path.with_name(f"{path.name}.draft")
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    draft.touch()
    mode = draft.stat().st_mode & 0o777  # as the user's other new files have; the library's own is 0600
    try:
        save_file(ready, draft, metadata=metadata or None)  # {} beside no tensors makes a broken header
    except SafetensorError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"expected to write {path}, which failed: {error}") from None
    draft.chmod(mode)
    move(draft, path)


def is_model(path: Path) -> bool:
    """Whether a file is a safetensors file and no checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            return "facts" not in (file.metadata() or {})
    except SafetensorError:
        return False


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of the checkpoint in ``directory``; raises UserError where there is none, or where it
    is not as it was written."""
    path = directory / FILE_NAME
    if not path.exists():
        below = sorted(str(file.parent) for file in directory.rglob(FILE_NAME))
        begun_here = (directory / records.FILE_NAME).exists()  # records refuse a new run there
        todo = "take another directory, or delete this one" if begun_here else "start the run first"
        todo = f"name one of the runs in it: {', '.join(below)}" if below else todo
        raise UserError(f"expected a checkpoint in {directory}, found no {FILE_NAME}; {todo}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            said = metadata.get("facts", "{}")
            facts = json.loads(said)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"expected {path} to be a checkpoint of msfusion, but it cannot be read: {error}"
        ) from None
    if not isinstance(facts, dict) or not facts.keys() >= FACTS:
        raise UserError(f"expected {path} to be a checkpoint of msfusion, it is another safetensors file")
    if metadata.get("digest") != digest(tensors, said):
        raise UserError(
            f"expected the checkpoint {path} as it was written, but its digest tells that it has changed; "
            "take a copy that has not, or start the run again in another directory"
        )
    return tensors, facts
