"""Windows that share no unit: masks by hand and by brute force, and the law that the full model is the mean
of its sub-models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from maps import kept, make_map
from torch import Tensor, nn

from msfusion.capture import capture
from msfusion.capture.graph import named_tensors
from msfusion.core import apart
from msfusion.core.axes import Axis, AxisMap, Concat, Widths, parse
from msfusion.core.merge import Contribution, Merge, extract
from msfusion.core.scale import scale_
from msfusion.core.twins import Twins
from msfusion.core.windows import Apart
from msfusion.errors import UserError
from msfusion.models import build


def schedule(axes: AxisMap, widths: Widths) -> Apart:
    sizes = {axis: axes.axes[axis].size for axis in widths}
    return Apart(sizes, apart.sub_models(widths, axes))


def test_a_weight_between_windows_of_one_unit_and_two() -> None:
    mask = apart.together((Axis("a", 2), Axis("b", 4)), {"a": 1, "b": 2})
    assert mask is not None
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_widths_that_divide_all_axes_by_one_number() -> None:
    axes = make_map({"w": ["a:12", "b:8"]})
    assert list(apart.divided(axes)) == [{"a": 12, "b": 8}, {"a": 6, "b": 4}, {"a": 3, "b": 2}]
    for widths in apart.divided(axes):
        assert 12 / widths["a"] == apart.sub_models(widths, axes)
    for uneven in ({"a": 6, "b": 2}, {"a": 5, "b": 4}, {"a": 12, "b": 4}):
        with pytest.raises(UserError, match="windows that divide all axes by one number, as they share no"):
            apart.sub_models(uneven, axes)


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
@pytest.mark.parametrize("number", [1, 2])
def test_entries_are_together_that_a_sub_model_holds(dims: Sequence[str], number: int) -> None:
    axes = make_map({"w": list(dims)})
    own = {axis: info.size // number for axis, info in axes.axes.items()}
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
    moving, widths = Apart({"a": 6, "b": 3}, 3), {"a": 2, "b": 1}
    seen = [moving.windows(round, 1, widths) for round in range(4)]
    assert seen[:2] == [{"a": ((2, 4),), "b": ((1, 2),)}, {"a": ((4, 6),), "b": ((2, 3),)}]
    assert seen[2:] == [{"a": ((0, 2),), "b": ((0, 1),)}, seen[0]]


class Case:
    """A model of norms per channel, all of its axes cut in three, and a start with windows apart."""

    def __init__(self, training: bool) -> None:
        torch.manual_seed(0)
        self.training = training
        self.model = build("resnet18", None, {"width": 6, "blocks": [1, 1]})[0].double().train(training)
        for part in self.model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = 1e-15
        self.x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
        self.captured = capture(self.model, (self.x,))
        self.axes = self.captured.axes
        self.widths = {axis: self.axes.axes[axis].size // 3 for axis in self.axes.cuttable}
        self.values = {name: t.detach() for name, t in named_tensors(self.model).items()}

    def full(self) -> Tensor:
        return outputs(self.model, self.values, self.x)

    def sub_models(self) -> list[Tensor]:
        made, moving = [], schedule(self.axes, self.widths)
        for number in range(moving.cycle):
            own = extract(self.values, self.axes, moving.windows(0, number, self.widths))
            scale_(own, apart.factors(self.axes, self.widths))
            made.append(outputs(self.captured.narrow(self.widths).double().train(self.training), own, self.x))
        return made


def outputs(model: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(model, dict(values), (x,))


def test_the_full_model_is_the_mean_of_its_sub_models() -> None:
    """Whatever the values are, as none of its parts sees another."""
    case = Case(training=False)
    apart.start_(case.values, case.axes, case.widths)
    first, second, third = case.sub_models()
    assert not torch.allclose(first, second)
    assert torch.allclose(case.full(), (first + second + third) / 3, atol=1e-12)


def test_copies_apart_are_the_full_model_each() -> None:
    case = Case(training=True)
    Twins(case.axes, case.widths, 0.5, apart=True).start_(case.values, 1.0)
    apart.start_(case.values, case.axes, case.widths)
    for own in case.sub_models():
        assert torch.allclose(own, case.full(), atol=1e-12)


def summing(dims: Sequence[str], summed: Sequence[int], normalised: bool = False) -> AxisMap:
    axes = make_map({"w": list(dims)})
    own = {d: axes.tensors["w"][d] for d in summed}
    return replace(axes, summed={"w": own}, normalised=frozenset({"w"} if normalised else ()))


CUT: list[tuple[list[str], list[int]]] = [
    (["a:4", "b:4"], [1]),
    (["3", "b:4"], [1]),
    (["b:4", "a:4 + 4"], [1]),
    (["b:4 + 2", "a:4"], [1]),
    (["3", "a:4 + 4"], [1]),
    (["b:4 + 2", "a:4 + 4"], [1]),
    (["3", "a:4", "a:4"], [1, 2]),
    (["b:4", "a:4", "a:4"], [1, 2]),
    (["a:4*3", "b:4*2"], [1]),
    (["b:4", "a:4"], [0]),
    (["2", "3"], [1]),
]


@pytest.mark.parametrize(("dims", "summed"), CUT, ids=str)
def test_a_factor_is_how_much_more_the_full_model_reads(dims: list[str], summed: list[int]) -> None:
    """Of each part of the inputs, counted among the entries that lie in sub-models."""
    axes, widths = summing(dims, summed), {"a": 2, "b": 2}
    own = dict.fromkeys(axes.axes, 2)
    mask = apart.together(axes.tensors["w"], own)
    shape = [parse(dim).size for dim in dims]
    whole = torch.ones(shape).double() if mask is None else mask.expand(shape).double()
    windows = schedule(axes, own).windows(0, 0, own)
    places = [torch.tensor(kept(dim, windows)) for dim in axes.tensors["w"]]
    ends = [sum(part.size for part in p.parts) if isinstance(p := parse(dim), Concat) else 0 for dim in dims]
    factor = apart.factors(axes, widths).get("w", 1.0)
    narrow = torch.ones([len(p) for p in places]).double() * factor
    for at in product(*(range(len(p)) for d, p in enumerate(places) if d not in summed)):
        row = iter(at)
        index = [slice(None) if d in summed else next(row) for d in range(len(dims))]
        outer = [slice(None) if d in summed else int(places[d][i]) for d, i in enumerate(index)]
        for part in (slice(0, 4), slice(4, 8)) if any(ends[d] for d in summed) else (slice(None),):
            full = whole[tuple(part if o == slice(None) else o for o in outer)].sum()
            cut = narrow[tuple(index)]
            inner = cut[:2] if part == slice(0, 4) else cut[2:] if part == slice(4, 8) else cut
            assert float(inner.sum()) == float(full)


def test_a_norm_takes_the_factor_of_all_away() -> None:
    assert not apart.factors(summing(["3", "b:4"], [1], normalised=True), {"b": 2})
    assert not apart.factors(summing(["a:4", "b:4 + 4"], [1], normalised=True), {"a": 2, "b": 2})
    own = apart.factors(summing(["3", "b:4 + 4"], [1], normalised=True), {"b": 2})["w"]
    assert isinstance(own, Tensor)
    assert float(own[0, 0]) == 2 * float(own[0, -1])


def test_a_start_apart_spreads_as_a_small_model_does() -> None:
    """A weight with all axes cut in four reads a quarter of the inputs: its values are doubled; one whose
    outputs stay whole reads all of them, and is scaled fourfold where it is cut out: they are halved."""
    axes = make_map({"w": ["a:8", "b:8"], "head": ["3", "b:8"], "mask": ["b:8"]})
    axes = replace(axes, summed={"w": {1: Axis("b", 8)}, "head": {1: Axis("b", 8)}})
    widths = {"a": 2, "b": 2}
    values = {"w": torch.ones(8, 8), "head": torch.ones(3, 8), "mask": torch.ones(8, dtype=torch.bool)}
    apart.start_(values, axes, widths)
    assert apart.factors(axes, widths) == {"head": 4}
    assert torch.equal(values["w"], 2 * torch.block_diag(*[torch.ones(2, 2)] * 4))
    assert torch.equal(values["head"], torch.full((3, 8), 0.5))
    assert values["mask"].all()


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


def test_products_that_are_scaled_themselves_are_refused() -> None:
    axes = make_map({"w": ["c:4", "a:8"]})
    apart.check(axes, {"a": 2, "c": 1}, [])
    apart.check(axes, {"a": 2}, ["model.py:3"])
    with pytest.raises(UserError, match=r"got one at model\.py:3 whose weight is shared or computed"):
        apart.check(axes, {"a": 2, "c": 1}, ["model.py:3"])
