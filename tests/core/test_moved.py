"""What is kept along units that move: by hand, then the law that nothing is lost where windows divide."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msfusion.core.axes import Axis, Fixed, Product, positions
from msfusion.core.cut import index
from msfusion.core.moved import moved, sources
from msfusion.core.windows import window

A = Axis("a", 6)
KINDS = torch.arange(6) % 3
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("old", "new", "kinds", "found"),
    [
        ([1, 2, 3], [1, 2, 3], None, [0, 1, 2]),
        ([1, 2, 3], [2, 3], None, [1, 2]),
        ([1, 2, 3], [2, 3, 4], None, None),
        ([1, 2, 3], [2, 3, 4], KINDS, [1, 2, 0]),
        ([0, 1, 2], [3, 4, 5], KINDS, [0, 1, 2]),
        ([0, 1, 2], [0, 4, 5], KINDS, [0, 1, 2]),
        ([0, 1, 3], [3, 4, 5], KINDS, None),
        ([0, 1, 3, 2], [3, 0, 5], KINDS, [2, 0, 3]),
    ],
)
def test_where_a_unit_finds_itself_or_its_twin(
    old: list[int], new: list[int], kinds: torch.Tensor | None, found: list[int] | None
) -> None:
    got = sources(torch.tensor(old), torch.tensor(new), 6, kinds)
    assert (None if got is None else got.tolist()) == found


def test_a_matrix_moves_along_both_dimensions() -> None:
    """Units 0 to 2 before, 2 to 4 now: 3 is the twin of 0, 4 that of 1; two columns per unit."""
    dims = (A, Product((A, Fixed(2))))
    before, now = {"a": ((0, 3),)}, {"a": ((2, 5),)}
    value = torch.arange(18.0).reshape(3, 6)
    got = moved(value, dims, before, now, lambda dim: torch.arange(dim.size) % (3 * (dim.size // 6)))
    assert got is not None
    assert torch.equal(got, value[[2, 0, 1]][:, [4, 5, 0, 1, 2, 3]])
    assert moved(value, dims, before, now, lambda dim: None) is None
    assert moved(value, dims, before, before, lambda dim: None) is value


@given(parts=st.integers(1, 4), width=st.integers(1, 6), data=st.data())
def test_with_widths_that_divide_every_unit_finds_its_kind_once(
    parts: int, width: int, data: st.DataObject
) -> None:
    axis = Axis("a", parts * width)
    old, new = (
        index(positions(axis, {"a": window(axis.size, data.draw(st.integers(0, axis.size - 1)), width)}), CPU)
        for _ in range(2)
    )
    kinds = torch.arange(axis.size) % width
    found = sources(old, new, axis.size, kinds)
    assert found is not None
    assert sorted(found.tolist()) == list(range(width))
    assert torch.equal(kinds[old[found]], kinds[new])
