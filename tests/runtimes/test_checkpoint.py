"""Files of tensors that are written as a whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from msfusion.errors import UserError
from msfusion.runtimes import checkpoint


def test_a_file_of_no_tensors_can_be_read(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "none.safetensors", {}, {})
    assert load_file(tmp_path / "none.safetensors") == {}


def test_a_checkpoint_has_the_mode_of_other_new_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    checkpoint.write(tmp_path / "model.safetensors", {"x": torch.ones(2)}, {})
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_records_without_a_checkpoint_are_not_told_to_start_first(tmp_path: Path) -> None:
    """Nor is a new run there, which the records refuse."""
    with pytest.raises(UserError, match="start the run first"):
        checkpoint.load(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(UserError, match="take another directory, or delete this one"):
        checkpoint.load(tmp_path)
