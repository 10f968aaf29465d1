"""Where units lie: hand-made dims first, then every index of random dims against nested loops."""

import json
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import dims, kept, make_map, resnet18, selections

from msfusion.core.axes import (
    Axis,
    AxisInfo,
    AxisMap,
    Concat,
    Dim,
    Fixed,
    Product,
    Selection,
    Units,
    axes_of,
    count,
    counted,
    narrowed,
    parse,
    positions,
    runs_of,
)

A, B = Axis("a", 5), Axis("b", 4)


@pytest.mark.parametrize(
    ("units", "runs"),
    [
        ([], ()),
        ([3], ((3, 4),)),
        ([2, 0, 1], ((0, 3),)),
        ([5, 1, 2, 5], ((1, 3), (5, 6))),
        ([0, 2, 4], ((0, 1), (2, 3), (4, 5))),
    ],
)
def test_runs_of_by_hand(units: list[int], runs: Units) -> None:
    assert runs_of(units) == runs
    assert count(runs) == len(set(units))


@pytest.mark.parametrize(
    ("dim", "selection", "expected"),
    [
        ("3", {"a": ((0, 1),)}, ((0, 3),)),
        ("a:5", {}, ((0, 5),)),
        ("a:5", {"a": ((0, 1), (3, 5))}, ((0, 1), (3, 5))),
        # two heads of three columns: head 1 is columns 3 to 5
        ("a:2*3", {"a": ((1, 2),)}, ((3, 6),)),
        # three groups that interleave: unit 1 is column 1, 3, 5
        ("3*a:2", {"a": ((1, 2),)}, ((1, 2), (3, 4), (5, 6))),
        # q, k, v of two heads of two columns: head 0 is columns 0-1, 4-5, 8-9
        ("3*a:2*2", {"a": ((0, 1),)}, ((0, 2), (4, 6), (8, 10))),
        ("a:2 + b:3", {"a": ((1, 2),), "b": ((0, 1),)}, ((1, 3),)),
        ("a:2 + a:2", {"a": ((1, 2),)}, ((1, 2), (3, 4))),
        ("a:2 + 1 + b:3", {"b": ((2, 3),)}, ((0, 3), (5, 6))),
        ("a:2*b:3", {"a": ((1, 2),), "b": ((0, 1), (2, 3))}, ((3, 4), (5, 6))),
        # the last index of one outer unit touches the first of the next
        ("a:3*b:3", {"b": ((0, 1), (2, 3))}, ((0, 1), (2, 4), (5, 7), (8, 9))),
        ("(a:2 + 1)*2", {"a": ((1, 2),)}, ((2, 6),)),
        ("2*(a:2 + 1)", {"a": ((0, 1),)}, ((0, 1), (2, 4), (5, 6))),
    ],
)
def test_positions_by_hand(dim: str, selection: Selection, expected: Units) -> None:
    assert positions(parse(dim), selection) == expected


@settings(max_examples=200, deadline=None)
@given(dims, selections)
def test_positions_are_those_of_nested_loops(dim: Dim, selection: Selection) -> None:
    runs = positions(dim, selection)
    assert [i for start, stop in runs for i in range(start, stop)] == kept(dim, selection)
    assert all(start < stop for start, stop in runs)
    assert all(stop < start for (_, stop), (start, _) in pairwise(runs))


@settings(max_examples=200, deadline=None)
@given(dims, selections)
def test_narrowed_counts_the_positions(dim: Dim, selection: Selection) -> None:
    widths = {axis: count(units) for axis, units in selection.items()}
    assert narrowed(dim, widths) == count(positions(dim, selection))
    assert narrowed(dim, {}) == dim.size


@settings(max_examples=200, deadline=None)
@given(dims)
def test_the_text_form_reads_back(dim: Dim) -> None:
    assert parse(str(dim)) == dim


@given(st.sets(st.integers(0, 30)))
@settings(max_examples=100, deadline=None)
def test_runs_hold_exactly_their_units(units: set[int]) -> None:
    runs = runs_of(units)
    assert {u for start, stop in runs for u in range(start, stop)} == units
    assert all(stop < start for (_, stop), (start, _) in pairwise(runs))


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (Fixed(10), "10"),
        (Axis("fc1.out", 64), "fc1.out:64"),
        (Axis("odd:name", 2), "odd:name:2"),
        (Product((Axis("heads", 4), Fixed(16))), "heads:4*16"),
        (Concat((A, B)), "a:5 + b:4"),
        (Product((Concat((A, Fixed(2))), Fixed(64))), "(a:5 + 2)*64"),
        (Product((Product((A, B)), Fixed(2))), "(a:5*b:4)*2"),
        (Concat((A, Concat((B, A)))), "a:5 + (b:4 + a:5)"),
        (Concat((Product((A, B)), A)), "a:5*b:4 + a:5"),
    ],
)
def test_text_forms(dim: Dim, text: str) -> None:
    assert str(dim) == text
    assert parse(text) == dim


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":3", "-1", "a:x", "(a:5", "a:5)", "a:5 +", "*3", "2 3", "()"]
)
def test_text_that_is_no_dim(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse(text)


def test_axes_of_names_each_axis_once_in_order() -> None:
    assert axes_of(parse("b:4*(a:5 + 2 + b:4)*3")) == ("b", "a")
    assert axes_of(Fixed(3)) == ()


def test_meetings_are_the_axes_that_cut_the_same_entries() -> None:
    axes = make_map(
        {
            "two dimensions": ["a:2", "b:3"],
            "two factors": ["c:2*d:2"],
            "segments side by side do not meet": ["e:2 + f:2"],
            "but all meet the other dimension": ["e:2 + f:2", "b:3"],
            "an axis is not its own neighbour": ["g:2", "g:2"],
            "deep": ["(h:2*i:2 + 3)*j:2"],
        }
    )
    assert list(axes.meetings()) == [
        ("a", "b"),
        ("b", "e"),
        ("b", "f"),
        ("c", "d"),
        ("h", "i"),
        ("h", "j"),
        ("i", "j"),
    ]


@pytest.mark.parametrize(
    ("dim", "names"),
    [
        ("7", ()),
        ("b:3*2*a:4", ("a", "b")),
        ("a:4*3 + 2*a:4", ("a",)),
        ("a:4*b:3 + b:3*a:4", ("a", "b")),
        ("a:4*a:4", ("a", "a")),
        ("a:4 + a:4*a:4", None),
        ("a:4 + 1", None),
        ("9*(a:4 + b:4)", None),
        ("(a:4 + b:4)*2 + (a:4 + b:4)", None),
    ],
)
def test_the_axes_to_whose_widths_a_size_is_proportional(dim: str, names: tuple[str, ...] | None) -> None:
    assert counted(parse(dim)) == names


def test_cuttable_and_shape() -> None:
    axes = make_map({"w": ["a:4*2", "b:3", "5"], "s": []}, whole={"b": "it is the input"})
    assert axes.cuttable == ("a",)
    assert axes.shape("w", {}) == (8, 3, 5)
    assert axes.shape("w", {"a": 1, "b": 2}) == (2, 2, 5)
    assert axes.shape("s", {"a": 1}) == ()


def test_json_keeps_everything_and_the_order() -> None:
    axes = AxisMap(
        tensors={"z": (Product((Axis("heads", 2), Fixed(3))), Axis("a", 4)), "b": ()},
        axes={"heads": AxisInfo(2), "a": AxisInfo(4, residual=True, whole="a reason, with: signs * ( +")},
        summed={"z": {0: parse("3*heads:4*16"), 1: parse("a:3 + 2")}},
        ties={"other": "z"},
        pinned={"b:0": "an operation without a rule"},
        unknown={"aten.roll": 3},
    )
    told = json.loads(axes.to_json())
    assert list(told["tensors"].items()) == [("z", ["heads:2*3", "a:4"]), ("b", [])]
    assert list(told["axes"].items()) == [
        ("heads", [2, False, None]),
        ("a", [4, True, "a reason, with: signs * ( +"]),
    ]
    assert told["summed"] == {"z": {"0": "3*heads:4*16", "1": "a:3 + 2"}}
    assert (told["ties"], told["unknown"]) == ({"other": "z"}, {"aten.roll": 3})
    assert told["pinned"] == {"b:0": "an operation without a rule"}


def test_the_resnet_of_these_tests_has_the_known_number_of_parameters() -> None:
    axes = resnet18()
    total = sum(prod(dim.size for dim in dims) for dims in axes.tensors.values())
    assert total == 11_173_962  # the usual figure of ResNet-18 for CIFAR-10
