"""Tensors that lie over one another, by hand."""

import pytest
import torch
from torch import nn

from msfusion.errors import UserError
from msfusion.learn.storage import own_memory_


def test_expanded_tensors_get_memory_of_their_own() -> None:
    model = nn.Linear(2, 3)
    expanded = torch.ones(1, 1).expand(1, 3)
    model.register_buffer("scale", expanded)
    model.bias = nn.Parameter(torch.full((1,), 2.0).expand(3))
    bias = model.bias
    own_memory_(model)
    assert model.scale is expanded
    assert model.bias is bias
    with torch.no_grad():
        expanded[0, 0] = 5.0
        bias[0] = 5.0
    assert expanded.tolist() == [[5.0, 1.0, 1.0]]
    assert bias.tolist() == [5.0, 2.0, 2.0]


def test_buffers_over_one_another_are_parted() -> None:
    model = nn.Linear(2, 3)
    table = torch.arange(6.0)
    for name, part in (("table", table), ("rows", table.view(2, 3)), ("rest", table[3:])):
        model.register_buffer(name, part)
    own_memory_(model)
    table.zero_()
    assert model.rows.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert model.rest.tolist() == [3.0, 4.0, 5.0]


def test_a_parameter_over_another_tensor_is_refused() -> None:
    weight = nn.Linear(3, 3).weight
    for other in (weight.data, weight.data.t(), weight.data[2]):
        model = nn.Module()
        model.first, model.second = weight, nn.Parameter(other)
        with pytest.raises(UserError, match="memory of their own, got second over that of first"):
            own_memory_(model)
        model = nn.Module()
        model.first = weight
        model.register_buffer("copy", other)
        with pytest.raises(UserError, match="got copy over that of first"):
            own_memory_(model)


def test_ties_and_neighbours_stay_as_they_are() -> None:
    """Parameters cut from one tensor side by side share its storage and no byte."""
    flat = torch.arange(12.0).view(3, 4)
    model = nn.Module()
    model.left, model.right = nn.Parameter(flat[:, :2]), nn.Parameter(flat[:, 2:])
    model.again = model.left
    places = [p.data_ptr() for p in model.parameters()]
    own_memory_(model)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert model.again is model.left
