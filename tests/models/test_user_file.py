"""Models from the user's own file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from msfusion.errors import UserError
from msfusion.models import InputSpec, build, build_without_values

SOURCE = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Size:
    width: int = 3


def alone(width: int = 3):
    return nn.Linear(4, Size(width).width)


def both(**options):
    return nn.Bilinear(2, 3, 4), (torch.zeros(1, 2), torch.zeros(1, 3))


def one_tensor():
    return nn.Linear(4, 3), torch.zeros(1, 4)


def number():
    return 3


def bad_example():
    return nn.Linear(4, 3), "x"


def needs(width):
    return nn.Linear(4, width)


value = 3
"""
VECTOR = InputSpec((4,), torch.float32, 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    return path


def test_module_alone_gets_its_example_from_the_data(file: Path) -> None:
    module, (example,) = build(f"{file}:alone", VECTOR, {"width": 5})
    assert module(example).shape == (2, 5)


def test_module_with_examples(file: Path) -> None:
    module, examples = build(f"{file}:both", None, {"anything": 1})
    assert module(*examples).shape == (1, 4)


def test_module_with_one_example(file: Path) -> None:
    module, examples = build(f"{file}:one_tensor", None)
    assert module(*examples).shape == (1, 3)


def test_data_decide_the_example_where_there_are_any(file: Path) -> None:
    _, (example,) = build(f"{file}:one_tensor", VECTOR)
    assert example.shape == (2, *VECTOR.shape)


def test_two_files_of_one_name_stay_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "model.py"
    other.parent.mkdir()
    other.write_text("from torch import nn\ndef alone():\n    return nn.Linear(4, 9)\n")
    assert build(f"{file}:alone", VECTOR)[0].out_features == 3
    assert build(f"{other}:alone", VECTOR)[0].out_features == 9


@pytest.mark.parametrize(
    ("function", "inputs", "options", "message"),
    [
        ("alone", None, {}, "return both, (module, example_inputs)"),
        ("alone", VECTOR, {"widht": 5}, "got 'widht': did you mean 'width'?"),
        ("needs", VECTOR, {}, "expected a value for the option 'width'"),
        ("nothing", VECTOR, {}, "expected a function 'nothing'"),
        ("value", VECTOR, {}, "expected a function 'value'"),
        ("number", VECTOR, {}, "(module, example_inputs), got int"),
        ("bad_example", VECTOR, {}, "a tensor or a tuple of tensors, got str"),
        ("", VECTOR, {}, "expected path/to/file.py:function"),
    ],
)
def test_errors(
    file: Path, function: str, inputs: InputSpec | None, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        build(f"{file}:{function}", inputs, options)
    assert message in str(raised.value)


@pytest.mark.parametrize("spec", ["absent.py:f", "model.py", "model.txt:f"])
def test_not_a_file_with_a_function(spec: str) -> None:
    with pytest.raises(UserError, match="expected"):
        build(spec, VECTOR)


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("def net(:\n    pass\n", 1, "SyntaxError: invalid syntax"),
        ("\nimport nowhere_at_all\n", 2, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("import torch\n\ndef net():\n    return torch.nn.Linear(3, wide)\n", 4, "NameError: name 'wide'"),
        ("import torch\ndef net():\n    return torch.nn.Linear(3, 'a')\n", 3, "TypeError: "),
        ("def net():\n    raise ValueError\n", 2, "ValueError: no message"),
        ("def net():\n    raise ValueError('one\\ntwo')\n", 2, "ValueError: one;"),
        ("import sys\nsys.exit(0)\n", 2, "SystemExit: 0"),
    ],
)
@pytest.mark.parametrize("make", [build, build_without_values])
def test_what_the_files_own_code_raises(
    make: Callable[..., object], source: str, line: int, error: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError) as raised:
        make(f"{path}:net", VECTOR)
    assert f"got at {path}:{line} {error}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_import_of_a_broken_file_names_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_mine.py").write_text("x = \n")
    (tmp_path / "net.py").write_text("import helper_of_mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"got at \S*helper_of_mine\.py:1 SyntaxError"):
        build(f"{tmp_path / 'net.py'}:net", VECTOR)


def test_example_inputs_in_a_dict_are_refused_by_the_inner_type(tmp_path: Path) -> None:
    path = tmp_path / "inner.py"
    path.write_text(
        "import torch\ndef net():\n    return torch.nn.Linear(4, 3), ({'x': torch.zeros(2, 4)},)\n"
    )
    with pytest.raises(UserError, match="a tensor or a tuple of tensors, got tuple of dict: return"):
        build(f"{path}:net", None)


def test_code_that_looks_at_values_is_built_with_values(tmp_path: Path) -> None:
    path = tmp_path / "looks.py"
    path.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    layer = nn.Linear(4, 3)\n"
        "    assert float(layer.weight.sum()) is not None\n"
        "    return layer\n"
    )
    module, _ = build_without_values(f"{path}:net", VECTOR)
    assert not next(module.parameters()).is_meta
