"""Files of tensors that are written as a whole."""

from pathlib import Path

from safetensors.torch import load_file

from msfusion.runtimes import checkpoint


def test_a_file_of_no_tensors_can_be_read(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "none.safetensors", {}, {})
    assert load_file(tmp_path / "none.safetensors") == {}
