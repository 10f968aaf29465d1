"""Imports go down only: the layers of the package, read from its source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "msfusion"
LAYERS = (
    {"errors", "settings"},
    {"core"},
    {"capture"},
    {"models", "data"},
    {"learn"},
    {"records"},
    {"runtimes", "report", "events"},
    {"flower", "peers"},
    {"config"},
    {"__init__"},  # the public names
    {"commands"},
    {"cli", "__main__"},
)
"""From low to high; parts of the same layer may import each other."""

FILES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The package, or the module, directly below msfusion."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def layer(part: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Full names of all that a module imports, wherever in the module; relative names are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            head = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*head, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> list[str]:
    package = ["msfusion", *path.relative_to(SOURCE).parent.parts]
    return list(imports(ast.parse(path.read_text()), package))


def own_part(name: str) -> str | None:
    """The part of msfusion that a full name lies in; None for other packages."""
    first, *rest = name.split(".")
    if first != "msfusion":
        return None
    known = {p for parts in LAYERS for p in parts}
    return rest[0] if rest and rest[0] in known else "__init__"


def upward(path: Path) -> list[str]:
    here = layer(part_of(path))
    parts = {name: own_part(name) for name in imports_of(path)}
    return [name for name, part in parts.items() if part is not None and layer(part) > here]


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in FILES} <= {p for parts in LAYERS for p in parts}


def test_imports_go_down_only() -> None:
    assert [(str(path.relative_to(SOURCE)), name) for path in FILES for name in upward(path)] == []


def test_the_core_needs_torch_and_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"torch"}
    foreign = [
        (path.stem, name)
        for path in FILES
        if part_of(path) == "core"
        for name in imports_of(path)
        if name.split(".")[0] not in allowed and not name.startswith(("msfusion.core", "msfusion.errors"))
    ]
    assert foreign == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import msfusion.cli", ["msfusion.cli"]),
        ("from msfusion import cli, core", ["msfusion.cli", "msfusion.core"]),
        ("from .cli import main", ["msfusion.core.cli.main"]),
        ("from ..cli import main", ["msfusion.cli.main"]),
        ("from .. import cli", ["msfusion.cli"]),
        ("def f():\n    import msfusion.cli as c", ["msfusion.cli"]),
    ],
)
def test_every_form_of_import_is_seen(source: str, found: list[str]) -> None:
    assert list(imports(ast.parse(source), ["msfusion", "core"])) == found


def test_the_layers_tell_up_from_down() -> None:
    assert layer("errors") < layer("core") < layer("learn") < layer("cli")
    assert own_part("msfusion.learn.local.train") == "learn"
    assert own_part("msfusion.train") == "__init__"
    assert own_part("torch.nn") is None
