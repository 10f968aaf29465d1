"""Extract and merge: three numbers by hand, then every entry of random tensors against plain loops."""

from collections.abc import Sequence
from math import prod
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import kept, make_map, maps, mask, randoms, resnet18, selections
from torch import Tensor

from msfusion.core import cut as module
from msfusion.core.axes import Axis, AxisMap, Selection, runs_of
from msfusion.core.merge import Contribution, Merge, add_into, extract, take
from msfusion.core.windows import RandomUnits
from msfusion.errors import UserError

LINE = make_map({"w": ["a:3"]})


def bits(tensor: Tensor) -> Tensor:
    """The tensor as whole numbers: tells 0 from -0."""
    return tensor.view({4: torch.int32, 8: torch.int64}[tensor.element_size()])


def contribution(
    axes: AxisMap, participant: int, selection: Selection, weight: float, names: Sequence[str] | None = None
) -> Contribution:
    """Values of its own for every position that the selection keeps."""
    full = randoms(axes, 100 + participant, torch.float64)
    given = {name: full[name] for name in (full if names is None else names)}
    return Contribution(participant, selection, extract(given, axes, selection), weight)


# --- by hand


def test_three_numbers() -> None:
    """The middle one is held by both, weights 1 and 3: 2 + (1 * 2 + 3 * 6) / 4 = 7."""
    values = {"w": torch.tensor([1.0, 2.0, 3.0])}
    merge = Merge(values, LINE)
    merge.add(Contribution(0, {"a": ((0, 2),)}, {"w": torch.tensor([5.0, 4.0])}, 1))
    merge.add(Contribution(1, {"a": ((1, 3),)}, {"w": torch.tensor([8.0, 3.5])}, 3))
    assert values["w"].tolist() == [1.0, 2.0, 3.0]
    merge.apply()
    assert values["w"].tolist() == [5.0, 7.0, 3.5]


def test_a_step_moves_part_of_the_way() -> None:
    values = {"w": torch.tensor([1.0, 2.0, 3.0])}
    merge = Merge(values, LINE)
    merge.add(Contribution(0, {"a": ((0, 2),)}, {"w": torch.tensor([5.0, 4.0])}, 10))
    merge.apply(step=0.5)
    assert values["w"].tolist() == [3.0, 3.0, 3.0]


def test_a_merge_starts_anew_after_apply() -> None:
    values = {"w": torch.tensor([1.0, 2.0, 3.0])}
    merge = Merge(values, LINE)
    merge.add(Contribution(0, {"a": ((0, 1),)}, {"w": torch.tensor([5.0])}, 1))
    merge.apply()
    merge.apply()
    assert values["w"].tolist() == [5.0, 2.0, 3.0]
    merge.add(Contribution(0, {"a": ((2, 3),)}, {"w": torch.tensor([9.0])}, 7))
    merge.apply()
    assert values["w"].tolist() == [5.0, 2.0, 9.0]


def test_a_window_over_the_end_comes_in_ascending_order() -> None:
    """Units 2 and 0: the sub-model holds unit 0 first."""
    full = {"w": torch.tensor([1.0, 2.0, 3.0])}
    around = {"a": ((0, 1), (2, 3))}
    assert extract(full, LINE, around)["w"].tolist() == [1.0, 3.0]
    merge = Merge(full, LINE)
    merge.add(Contribution(0, around, {"w": torch.tensor([10.0, 30.0])}, 2))
    merge.apply()
    assert full["w"].tolist() == [10.0, 2.0, 30.0]


def test_extract_copies() -> None:
    full = {"w": torch.tensor([1.0, 2.0, 3.0])}
    for selection in ({}, {"a": ((0, 3),)}, {"a": ((0, 1), (2, 3))}):
        part = extract(full, LINE, selection)["w"]
        assert part.is_contiguous()
        part.zero_()
    assert full["w"].tolist() == [1.0, 2.0, 3.0]


def test_numbers_that_count_are_extracted_too() -> None:
    axes = make_map({"seen": [], "which": ["a:3"]})
    full = {"seen": torch.tensor(7), "which": torch.tensor([True, False, True])}
    part = extract(full, axes, {"a": ((1, 3),)})
    assert part["seen"].item() == 7
    assert part["which"].tolist() == [False, True]


def test_an_axis_that_is_better_whole_is_merged_right_when_it_is_cut_all_the_same() -> None:
    axes = make_map({"w": ["a:3"]}, whole={"a": "it is the vocabulary"})
    values = {"w": torch.zeros(3)}
    merge = Merge(values, axes)
    merge.add(Contribution(0, {}, {"w": torch.tensor([4.0, 4.0, 4.0])}, 1))
    merge.add(Contribution(1, {"a": ((0, 1),)}, {"w": torch.tensor([8.0])}, 1))
    merge.add(Contribution(2, {}, {"w": torch.tensor([0.0, 0.0, 0.0])}, 2))
    merge.apply()
    assert values["w"].tolist() == [3.0, pytest.approx(4 / 3), pytest.approx(4 / 3)]


# --- properties

cases = st.tuples(maps(), st.lists(selections, min_size=1, max_size=5), st.integers(0, 3))


@settings(max_examples=100, deadline=None)
@given(cases)
def test_extract_takes_the_positions_of_nested_loops(case: tuple[AxisMap, list[Selection], int]) -> None:
    axes, (selection, *_), seed = case
    full = randoms(axes, seed)
    for name, part in extract(full, axes, selection).items():
        index = np.ix_(*[kept(dim, selection) for dim in axes.tensors[name]])
        np.testing.assert_array_equal(part.numpy(), full[name].numpy()[index])


@settings(max_examples=100, deadline=None)
@given(cases, st.floats(0.01, 1e6))
def test_handing_back_what_was_pulled_changes_no_bit(
    case: tuple[AxisMap, list[Selection], int], weight: float
) -> None:
    axes, chosen, seed = case
    values = randoms(axes, seed)
    for tensor in values.values():
        tensor[tensor.abs() < 0.3] *= 0.0  # zeros of both signs
    before = {name: bits(tensor).clone() for name, tensor in values.items()}
    merge = Merge(values, axes)
    for participant, selection in enumerate(chosen):
        merge.add(Contribution(participant, selection, extract(values, axes, selection), weight))
    merge.apply(step=0.7)
    assert all(torch.equal(bits(values[name]), before[name]) for name in values)


def brute_force(
    axes: AxisMap, values: dict[str, Tensor], contributions: Sequence[Contribution], step: float
) -> dict[str, np.ndarray]:
    """Entry by entry: the weighted mean of those that hold it."""
    out = {}
    for name, dims in axes.tensors.items():
        result = values[name].numpy().copy()
        for place in np.ndindex(result.shape):
            held: list[tuple[float, float]] = []
            for c in contributions:
                columns = [kept(dim, c.selection) for dim in dims]
                if name in c.values and all(i in column for i, column in zip(place, columns, strict=True)):
                    sub = tuple(column.index(i) for i, column in zip(place, columns, strict=True))
                    held.append((c.weight, float(c.values[name][sub])))
            if held:
                mean = sum(w * v for w, v in held) / sum(w for w, _ in held)
                result[place] += step * (mean - result[place])
        out[name] = result
    return out


@st.composite
def contributions_to(draw: st.DrawFn, axes: AxisMap) -> list[Contribution]:
    names = sorted(axes.tensors)
    return [
        contribution(
            axes,
            participant,
            draw(selections),
            draw(st.sampled_from([1, 2.5, 600])),
            draw(st.one_of(st.none(), st.lists(st.sampled_from(names), unique=True))),
        )
        for participant in range(draw(st.integers(1, 4)))
    ]


small_maps = maps().filter(lambda m: sum(prod(d.size for d in dims) for dims in m.tensors.values()) < 250)
merges = small_maps.flatmap(lambda m: st.tuples(st.just(m), contributions_to(m)))


@settings(max_examples=80, deadline=None)
@given(merges, st.sampled_from([1.0, 0.3]))
def test_merge_is_the_masked_weighted_mean(case: tuple[AxisMap, list[Contribution]], step: float) -> None:
    axes, contributions = case
    values = randoms(axes, 0, torch.float64)
    expected = brute_force(axes, values, contributions, step)
    before = {name: tensor.clone() for name, tensor in values.items()}
    merge = Merge(values, axes)
    for c in contributions:
        merge.add(c)
    assert all(torch.equal(values[name], before[name]) for name in values)
    merge.apply(step)
    for name, tensor in values.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-12, atol=1e-12)
        held = np.zeros(tensor.shape, dtype=bool)
        for c in contributions:
            if name in c.values:
                held |= mask(axes.tensors[name], c.selection)
        assert np.array_equal(bits(tensor).numpy()[~held], bits(before[name]).numpy()[~held])


@settings(max_examples=40, deadline=None)
@given(merges, st.randoms(use_true_random=False))
def test_the_order_of_contributions_matters_no_more_than_rounding(
    case: tuple[AxisMap, list[Contribution]], draw: object
) -> None:
    axes, contributions = case
    results = []
    shuffled = list(contributions)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    for order in (contributions, shuffled):
        values = randoms(axes, 0, torch.float64)
        merge = Merge(values, axes)
        for c in order:
            merge.add(c)
        merge.apply()
        results.append(values)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-12, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(cases)
def test_one_index_per_dimension_does_what_slices_do(case: tuple[AxisMap, list[Selection], int]) -> None:
    axes, (selection, *_), seed = case
    full = randoms(axes, seed)
    for name, dims in axes.tensors.items():
        if not dims:
            continue  # one entry is one piece
        results = []
        for most in (0, 10**9):
            with mock.patch.object(module, "_MOST_PIECES", most):
                part = take(full[name], dims, selection)
                total = full[name].clone()
                add_into(total, dims, selection, part * 3)
                add_into(total, dims, selection, 0.5)
                narrow = torch.zeros([1, *total.shape[1:]][: len(dims)])
                add_into(narrow, dims, selection, 2.0)
            results.append((part, total, narrow))
        for by_index, by_slice in zip(*results, strict=True):
            assert torch.equal(by_index, by_slice)


def test_scattered_units_take_the_index_path_and_come_back() -> None:
    axes = make_map({"w": ["a:64", "b:48*2"]})
    selection = RandomUnits({"a": 64, "b": 48}, seed=0).windows(0, 0, {"a": 20, "b": 20})
    assert len(selection["a"]) * len(selection["b"]) > module._MOST_PIECES
    values = randoms(axes, 0, torch.float64)
    c = contribution(axes, 0, selection, 5)
    expected = brute_force(axes, values, [c], 1.0)["w"]
    merge = Merge(values, axes)
    merge.add(c)
    merge.apply()
    np.testing.assert_allclose(values["w"].numpy(), expected, rtol=1e-12)


# --- refusals


def bad(values: dict[str, Tensor] | None = None, weight: float = 1.0) -> Contribution:
    good = {"w": torch.tensor([5.0, 6.0]), "v": torch.tensor([[1.0], [2.0]])}
    return Contribution(7, {"a": ((0, 2),)}, good | (values or {}), weight)


@pytest.mark.parametrize(
    ("contribution", "message"),
    [
        (bad(weight=0), "expected a weight above 0, got 0"),
        (bad(weight=-1.5), "expected a weight above 0, got -1.5"),
        (bad(weight=float("nan")), "expected a weight above 0, got nan"),
        (bad(weight=float("inf")), "expected a weight above 0, got inf"),
        (bad({"x": torch.zeros(2)}), "got an unknown one, 'x'"),
        (bad({"v": torch.zeros(2)}), r"expected v of shape \(2, 1\), got \(2,\)"),
        (bad({"v": torch.zeros(3, 1)}), r"expected v of shape \(2, 1\), got \(3, 1\)"),
        (bad({"v": torch.tensor([[1.0], [float("nan")]])}), "got NaN or infinity in v"),
        (bad({"v": torch.tensor([[-float("inf")], [0.0]])}), "got NaN or infinity in v"),
        (bad({"v": torch.full((2, 1), 1e300, dtype=torch.float64)}), "got NaN or infinity in v"),
    ],
)
def test_a_contribution_that_is_refused_leaves_the_merge_as_it_was(
    contribution: Contribution, message: str
) -> None:
    axes = make_map({"w": ["a:3"], "v": ["a:3", "1"]})
    values = {"w": torch.tensor([1.0, 2.0, 3.0]), "v": torch.zeros(3, 1)}
    merge = Merge(values, axes)
    merge.add(Contribution(0, {"a": ((0, 1),)}, {"w": torch.tensor([3.0])}, 1))
    with pytest.raises(UserError, match=f"the contribution of participant 7: .*{message}"):
        merge.add(contribution)
    assert values["w"].tolist() == [1.0, 2.0, 3.0]
    merge.add(Contribution(1, {"a": ((0, 2),)}, {"w": torch.tensor([7.0, 8.0])}, 3))
    merge.apply()
    assert values["w"].tolist() == [6.0, 8.0, 3.0]
    assert values["v"].flatten().tolist() == [0.0, 0.0, 0.0]


def test_parameters_of_a_module_may_be_handed_over_as_they_are() -> None:
    values = {"w": torch.zeros(3)}
    merge = Merge(values, LINE)
    merge.add(Contribution(0, {}, {"w": torch.nn.Parameter(torch.ones(3))}, 1))
    merge.apply()
    assert not values["w"].requires_grad
    assert values["w"].tolist() == [1.0, 1.0, 1.0]


def test_values_of_another_type_are_brought_to_the_model_s() -> None:
    values = {"w": torch.zeros(3)}
    merge = Merge(values, LINE)
    merge.add(Contribution(0, {}, {"w": torch.ones(3, dtype=torch.float16)}, 1))
    merge.add(Contribution(1, {}, {"w": torch.full((3,), 4.0, dtype=torch.float64)}, 2))
    merge.apply()
    assert values["w"].dtype == torch.float32
    assert values["w"].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_merged_in_single_precision(dtype: torch.dtype) -> None:
    """The weights, 50,000 examples each, and their sums do not fit in half precision."""
    values = {"w": torch.tensor([1.0, 2.0, 3.0]).to(dtype)}
    merge = Merge(values, LINE)
    merge.add(Contribution(0, {"a": ((0, 2),)}, {"w": torch.tensor([5.0, 4.0])}, 50_000))
    merge.add(Contribution(1, {"a": ((1, 3),)}, {"w": torch.tensor([8.0, 3.5])}, 150_000))
    merge.apply()
    assert values["w"].dtype == dtype
    assert values["w"].tolist() == [5.0, 7.0, 3.5]


# --- memory


def held(merge: Merge, values: dict[str, Tensor]) -> int:
    """Numbers that a merge keeps beside the model's own and a block that does not grow with anything."""
    own = {t.untyped_storage().data_ptr() for t in values.values()}
    kept = {name: table for name, table in vars(merge).items() if name != "_room"}
    tables = [table for table in kept.values() if isinstance(table, dict)]
    tensors = [t for table in tables for t in table.values() if isinstance(t, Tensor)]
    return sum(t.numel() for t in tensors if t.untyped_storage().data_ptr() not in own)


def test_memory_does_not_grow_with_the_number_of_participants() -> None:
    axes = resnet18()
    axes = AxisMap({n: d for n, d in axes.tensors.items() if n.startswith(("0", "stem"))}, axes.axes)
    values = randoms(axes, 0)
    full = sum(t.numel() for t in values.values())
    merge = Merge(values, axes)
    sizes = {axis: info.size for axis, info in axes.axes.items()}
    schedule = RandomUnits(sizes, 0)
    kept_after = []
    for participant in range(12):
        selection = schedule.windows(0, participant, {axis: size // 2 for axis, size in sizes.items()})
        merge.add(Contribution(participant, selection, extract(values, axes, selection), 1))
        kept_after.append(held(merge, values))
    assert len(set(kept_after)) == 1
    assert kept_after[0] <= 2 * full
    merge.apply()
    assert held(merge, values) == full, "the sums, for the next round"


def test_weights_take_no_room_along_dimensions_that_nobody_cuts() -> None:
    axes = make_map({"w": ["a:8", "b:32", "3"]})
    values = randoms(axes, 0)
    merge = Merge(values, axes)
    merge.add(Contribution(0, {"a": ((0, 4),)}, {"w": torch.zeros(4, 32, 3)}, 1))
    assert held(merge, values) == 8 * 32 * 3 + 8


def test_all_sums_are_kept_where_they_are_wanted() -> None:
    axes = make_map({"w": ["a:8", "b:32", "3"]})
    values = randoms(axes, 0)
    made: list[Tensor] = []

    def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        made.append(torch.zeros(shape, dtype=dtype, device=device))
        return made[-1]

    merge = Merge(values, axes, zeros)
    merge.add(Contribution(0, {"a": ((0, 4),), "b": ((8, 16),)}, {"w": torch.zeros(4, 8, 3)}, 1))
    assert held(merge, values) == sum(tensor.numel() for tensor in made) == 8 * 32 * 3 + 8 * 32


def test_runs_and_units_agree() -> None:
    assert extract({"w": torch.arange(3.0)}, LINE, {"a": runs_of([2, 0])})["w"].tolist() == [0.0, 2.0]


def test_rows_that_do_not_count() -> None:
    """Classes 0 and 2 of three count for the first, all for the second; the axis is cut as well."""
    axes = make_map({"head": ["3", "a:3"]})
    values = {"head": torch.zeros(3, 3)}
    merge = Merge(values, axes)
    first, second = torch.full((3, 2), 4.0), torch.full((3, 3), 8.0)
    merge.add(Contribution(0, {"a": ((0, 2),)}, {"head": first}, 3, {"head": (0, ((0, 1), (2, 3)))}))
    merge.add(Contribution(1, {}, {"head": second}, 1))
    merge.apply()
    assert values["head"].tolist() == [[5, 5, 8], [8, 8, 8], [5, 5, 8]]


def test_complex_parameters_are_merged_by_real_weights() -> None:
    axes = AxisMap({"w": (Axis("a", 4),)}, {})
    values = {"w": torch.tensor([1j, 2j, 3j, 4j])}
    merge = Merge(values, axes, measure=True)
    merge.add(Contribution(0, {"a": ((0, 2),)}, {"w": torch.tensor([1.0 + 1j, 2j])}, 1))
    merge.add(Contribution(1, {"a": ((0, 1),)}, {"w": torch.tensor([5.0 + 1j])}, 3))
    shift = merge.shift()
    assert shift is not None
    assert shift.spread == pytest.approx(1 * 9 + 3 * 1)  # the mean is 4, changes of 1 and 5
    assert shift.size == pytest.approx(4 * 16)
    merge.apply()
    assert values["w"].tolist() == [4 + 1j, 2j, 3j, 4j]
