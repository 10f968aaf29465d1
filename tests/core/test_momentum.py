"""Server momentum: three numbers by hand, then PyTorch's own SGD with momentum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import make_map

from msfusion.core import merge as module
from msfusion.core.merge import Contribution, Merge
from msfusion.core.momentum import Momentum
from msfusion.core.twins import Twins

LINE = make_map({"w": ["a:3"]})
WHOLE = {"a": ((0, 3),)}


def moved(values: dict[str, torch.Tensor], momentum: Momentum, to: list[float], step: float = 1.0) -> None:
    merge = Merge(values, LINE)
    merge.add(Contribution(0, {"a": ((0, len(to)),)}, {"w": torch.tensor(to)}, 1))
    merge.apply(step, momentum)


def test_two_rounds_by_hand() -> None:
    """The first number moves by 4, then by 2 + 4 / 2. Nobody holds the last one in the second round, and
    nobody changes the middle one: both stay. The last goes on from its own velocity in the third."""
    values, momentum = {"w": torch.tensor([1.0, 2.0, 3.0])}, Momentum(0.5)
    moved(values, momentum, [5.0, 4.0, 4.0])
    assert values["w"].tolist() == [5.0, 4.0, 4.0]
    moved(values, momentum, [7.0, 4.0])
    assert values["w"].tolist() == [9.0, 4.0, 4.0]
    moved(values, momentum, [9.0, 4.0, 6.0])
    assert values["w"].tolist() == [9.0, 4.0, 6.5]


def test_a_step_moves_part_of_the_way_and_leaves_the_velocity() -> None:
    values, momentum = {"w": torch.tensor([0.0, 0.0, 0.0])}, Momentum(0.5)
    moved(values, momentum, [4.0, 8.0, 0.0], step=0.5)
    assert values["w"].tolist() == [2.0, 4.0, 0.0]
    moved(values, momentum, [3.0, 4.0, 0.0], step=1.0)
    assert values["w"].tolist() == [2 + 1 + 2, 4.0, 0.0]


def test_twins_share_what_moves_them() -> None:
    """Two kinds in four units; nobody holds the last two, who move with their twins."""
    axes = make_map({"w": ["a:4"]})
    values, momentum = {"w": torch.zeros(4)}, Momentum(0.5)
    merge = Merge(values, axes, twins=Twins(axes, {"a": 2}, 1.0))
    for _ in range(2):
        part = values["w"][:2] + torch.tensor([2.0, 4.0])
        merge.add(Contribution(0, {"a": ((0, 2),)}, {"w": part}, 1))
        merge.apply(1.0, momentum)
    assert values["w"].tolist() == [5.0, 10.0, 5.0, 10.0]


@given(
    decay=st.floats(0, 0.95),
    step=st.floats(0.1, 1),
    changes=st.lists(st.lists(st.floats(0.125, 4), min_size=6, max_size=6), min_size=1, max_size=5),
)
@settings(max_examples=40)
def test_it_is_sgd_with_momentum_on_the_merged_change(
    decay: float, step: float, changes: list[list[float]]
) -> None:
    """Here in blocks of a row."""
    axes = make_map({"w": ["a:3", "2"]})
    values, momentum = {"w": torch.zeros(3, 2, dtype=torch.float64)}, Momentum(decay)
    expected = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([expected], lr=step, momentum=decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "block_size", lambda device: 2)
        for change in changes:
            moves = torch.tensor(change, dtype=torch.float64).view(3, 2)
            merge = Merge(values, axes)
            merge.add(Contribution(0, WHOLE, {"w": values["w"] + moves}, 1))
            merge.apply(step, momentum)
            expected.grad = -moves
            optimizer.step()
    assert torch.allclose(values["w"], expected.detach(), rtol=1e-9)
