"""Windows that share no unit: masks by hand and by brute force, and the law that the full model is the mean
of its sub-models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from maps import kept, make_map
from torch import Tensor, nn

from msfusion.capture import capture
from msfusion.capture.graph import named_tensors
from msfusion.core import apart
from msfusion.core.axes import Axis, AxisMap, Widths, parse
from msfusion.core.merge import Contribution, Merge, extract
from msfusion.core.scale import factors, scale_
from msfusion.core.twins import Twins, spread_
from msfusion.core.windows import Apart
from msfusion.errors import UserError
from msfusion.models import build


def schedule(axes: AxisMap, widths: Widths) -> Apart:
    sizes = {axis: axes.axes[axis].size for axis in widths}
    return Apart(sizes, apart.sub_models(widths, sizes))


def test_a_weight_between_four_windows_and_two() -> None:
    """Sub-model s is window s mod 4 of a and s mod 2 of b."""
    mask = apart.together((Axis("a", 4), Axis("b", 4)), {"a": 1, "b": 2})
    assert mask is not None
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]


DIMS = [
    ["a:8", "b:4"],
    ["a:8*3", "b:4 + 2"],
    ["a:8 + b:4", "c:6"],
    ["a:8*b:4", "c:6", "3"],
    ["a:8", "a:8"],
    ["c:6", "c:6 + a:8"],
    ["b:4"],
    ["5", "3"],
]


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("widths", [{"a": 2, "b": 1, "c": 3}, {"a": 4, "b": 1, "c": 2}, {"a": 2, "b": 4}])
def test_entries_are_together_that_a_sub_model_holds(dims: Sequence[str], widths: Widths) -> None:
    axes = make_map({"w": list(dims)})
    own = {axis: width for axis, width in widths.items() if axis in axes.axes}
    moving = schedule(axes, own)
    expected = torch.zeros([parse(dim).size for dim in dims], dtype=torch.bool)
    for number in range(moving.cycle):
        windows = moving.windows(0, number, own)
        places = [torch.tensor(kept(dim, windows)) for dim in axes.tensors["w"]]
        expected[torch.meshgrid(*places, indexing="ij")] = True
    mask = apart.together(axes.tensors["w"], own)
    assert torch.equal(
        expected, torch.ones(()).bool().expand_as(expected) if mask is None else mask.expand_as(expected)
    )
    assert mask is None or not mask.all()


def test_participants_go_through_all_sub_models() -> None:
    moving = Apart({"a": 6, "b": 4}, 6)
    widths = {"a": 2, "b": 2}
    seen = [moving.windows(round, 1, widths) for round in range(6)]
    assert seen[0] == {"a": ((2, 4),), "b": ((2, 4),)}
    assert seen[1] == {"a": ((4, 6),), "b": ((0, 2),)}
    assert len({tuple(one.items()) for one in seen}) == 6
    assert moving.windows(6, 1, widths) == seen[0]


class Case:
    """A model of batch norms whose axes are all cut in two or four, and a start with windows apart."""

    def __init__(self, training: bool) -> None:
        torch.manual_seed(0)
        self.training = training
        self.model = build("resnet18", None, {"width": 12, "blocks": [1, 1]})[0].double().train(training)
        self.x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
        self.captured = capture(self.model, (self.x,))
        self.axes = self.captured.axes
        sizes = {axis: self.axes.axes[axis].size for axis in self.axes.cuttable}
        self.widths = {axis: size // (4 if axis == min(sizes) else 2) for axis, size in sizes.items()}
        self.values = {name: t.detach() for name, t in named_tensors(self.model).items()}
        self.windows = schedule(self.axes, self.widths)

    def start(self) -> None:
        spread_(self.values, self.axes, self.widths)
        apart.start_(self.values, self.axes, self.widths)

    def full(self) -> Tensor:
        return outputs(self.model, self.values, self.x)

    def sub_models(self) -> list[Tensor]:
        factor = apart.lessened(factors(self.axes, self.widths), self.axes, self.widths)
        made = []
        for number in range(self.windows.cycle):
            own = extract(self.values, self.axes, self.windows.windows(0, number, self.widths))
            scale_(own, factor)
            made.append(outputs(self.captured.narrow(self.widths).double().train(self.training), own, self.x))
        return made


def outputs(model: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(model, dict(values), (x,))


def test_the_full_model_is_the_mean_of_its_sub_models() -> None:
    """All axes halved; whatever the values are, as none of its parts sees another."""
    case = Case(training=False)
    case.widths = {axis: case.axes.axes[axis].size // 2 for axis in case.widths}
    case.windows = schedule(case.axes, case.widths)
    case.start()
    first, second = case.sub_models()
    assert not torch.allclose(first, second)
    assert torch.allclose(case.full(), (first + second) / 2, atol=1e-12)


def test_copies_apart_are_the_full_model_each() -> None:
    """Norms take the statistics of the batch, and nothing more: the size of what they are given is lost."""
    case = Case(training=True)
    for part in case.model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-15
    case.captured = capture(case.model, (case.x,))
    Twins(case.axes, case.widths, 0.5, apart=True).start_(case.values, 1.0)
    apart.start_(case.values, case.axes, case.widths)
    assert case.windows.cycle == 4
    for own in case.sub_models():
        assert torch.allclose(own, case.full(), atol=1e-12)


def test_a_start_apart_spreads_as_a_small_model_does() -> None:
    """A weight with all axes cut in four reads a quarter of the inputs: its values are doubled; one whose
    outputs stay whole reads all of them, and is scaled fourfold where it is cut out: they are halved."""
    axes = make_map({"w": ["a:8", "b:8"], "head": ["3", "b:8"]})
    axes = replace(axes, summed={"w": {1: Axis("b", 8)}, "head": {1: Axis("b", 8)}})
    widths = {"a": 2, "b": 2}
    values = {"w": torch.ones(8, 8), "head": torch.ones(3, 8)}
    spread_(values, axes, widths)
    apart.start_(values, axes, widths)
    assert apart.lessened(factors(axes, widths), axes, widths) == {"head": 4}
    assert torch.equal(values["w"], 2 * torch.block_diag(*[torch.ones(2, 2)] * 4))
    assert torch.equal(values["head"], torch.full((3, 8), 0.5))


@pytest.mark.parametrize("tie", [0.0, 0.5, 1.0])
def test_what_lies_in_no_sub_model_stays_zero(tie: float) -> None:
    axes = make_map({"w": ["a:4", "b:4"]})
    axes = replace(axes, axes={**axes.axes, "b": replace(axes.axes["b"], residual=True)})
    widths = {"a": 2, "b": 2}
    values = {"w": torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))}
    merge = Merge(values, axes, twins=Twins(axes, widths, tie, apart=True))
    windows = schedule(axes, widths).windows(0, 1, widths)
    merge.add(Contribution(1, windows, {"w": torch.full((2, 2), 3.0)}, 1))
    merge.apply()
    assert torch.equal(
        values["w"], torch.block_diag(torch.full((2, 2), 1 + 2 * tie), torch.full((2, 2), 3.0))
    )


def test_the_twins_of_some_rows_are_those_of_the_model() -> None:
    axes = make_map({"w": ["a:4", "b:4"]})
    twins = Twins(axes, {"a": 2, "b": 2}, 0.5, apart=True)
    weight = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    total = torch.arange(1.0, 17.0).view(4, 4) * weight
    rows = torch.tensor([3, 1])
    part = twins.among({"part": ("w", rows)}).mean("part", total[rows], weight[rows])
    mean = twins.mean("w", total, weight)
    assert mean.tolist() == [[6, 7, 0, 0], [10, 11, 0, 0], [0, 0, 6, 7], [0, 0, 10, 11]]
    assert torch.equal(part, mean[rows])


def test_inputs_side_by_side_that_are_cut_otherwise_are_refused() -> None:
    axes = make_map({"w": ["c:4", "a:8 + b:8"]})
    axes = replace(axes, summed={"w": {1: parse("a:8 + b:8")}})
    apart.check(axes, {"a": 2, "b": 2, "c": 1}, [])
    apart.check(axes, {"a": 2, "b": 4}, ["model.py:3"])
    with pytest.raises(UserError, match="inputs of w that are all cut alike, as windows share no unit, got"):
        apart.check(axes, {"a": 2, "b": 4, "c": 1}, [])
    with pytest.raises(UserError, match=r"got one at model\.py:3 whose weight is shared or computed"):
        apart.check(axes, {"a": 2, "b": 2, "c": 1}, ["model.py:3"])
