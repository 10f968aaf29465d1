"""Pull, push and commit by hand: one axis of three units, one weight each."""

import pytest
import torch

from msfusion.core.axes import AxisInfo, AxisMap, parse
from msfusion.core.merge import Contribution
from msfusion.errors import UserError
from msfusion.learn.store import MemoryStore, OwnStore

AXES = AxisMap(tensors={"w": (parse("a:3"),), "count": ()}, axes={"a": AxisInfo(3)})
FIRST, LAST = {"a": ((0, 2),)}, {"a": ((1, 3),)}


def values() -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([1.0, 2.0, 3.0]), "count": torch.tensor(5)}


def memory() -> MemoryStore:
    return MemoryStore(values(), AXES, frozenset({"w"}))


def own() -> OwnStore:
    return OwnStore(values(), AXES, frozenset({"w"}))


def given(participant: int, windows: dict[str, tuple[tuple[int, int], ...]], *weights: float) -> Contribution:
    return Contribution(participant, windows, {"w": torch.tensor(weights)}, weight=1)


def held(store: MemoryStore) -> list[float]:
    return store.state()["w"].tolist()  # type: ignore[no-any-return]


def test_pull_copies_parameters_and_buffers() -> None:
    store = memory()
    pulled = store.pull(0, LAST)
    assert pulled["w"].tolist() == [2.0, 3.0]
    assert pulled["count"].item() == 5
    pulled["w"].zero_()
    pulled["count"].zero_()
    assert held(store) == [1.0, 2.0, 3.0]
    assert store.state()["count"].item() == 5


def test_nothing_changes_before_the_commit() -> None:
    """Unit 1 is held by both: (4 + 8) / 2."""
    store = memory()
    store.push(given(0, FIRST, 10, 4))
    store.push(given(1, LAST, 8, 30))
    assert held(store) == [1.0, 2.0, 3.0]
    assert store.pull(2, FIRST)["w"].tolist() == [1.0, 2.0]
    store.commit(1.0)
    assert held(store) == [10.0, 6.0, 30.0]


def test_half_a_step() -> None:
    store = memory()
    store.push(given(0, FIRST, 11, 4))
    store.commit(0.5)
    assert held(store) == [6.0, 3.0, 3.0]


@pytest.mark.parametrize("make", [memory, own])
def test_what_is_discarded_is_never_merged(make: type[MemoryStore]) -> None:
    store = make()
    store.push(given(0, FIRST, 10, 4))
    store.discard()
    store.push(given(1, LAST, 8, 30))
    store.commit(1.0)
    assert store.pull(0, FIRST)["w"][0].item() == 1.0
    assert store.pull(1, LAST)["w"].tolist() == [8.0, 30.0]


@pytest.mark.parametrize("make", [memory, own])
def test_a_refused_contribution_leaves_nothing(make: type[MemoryStore]) -> None:
    store = make()
    for bad in (given(0, FIRST, float("nan"), 4), given(0, FIRST, 1, 2, 3)):
        with pytest.raises(UserError, match="participant 0"):
            store.push(bad)
    store.commit(1.0)
    assert held(store) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("make", [memory, own])
def test_a_restored_store_goes_on_as_the_saved_one(make: type[MemoryStore]) -> None:
    store = make()
    store.push(given(1, LAST, 8, 30))
    store.commit(1.0)
    saved = {name: tensor.clone() for name, tensor in store.state().items()}
    other = make()
    other.push(given(0, FIRST, 7, 7))
    other.commit(1.0)
    other.restore(saved)
    assert other.state().keys() == saved.keys()
    for participant in (0, 1):
        assert torch.equal(other.pull(participant, LAST)["w"], store.pull(participant, LAST)["w"])


def test_own_models_never_meet() -> None:
    store = own()
    store.push(given(0, FIRST, 10, 4))
    store.push(given(1, FIRST, 20, 8))
    assert store.pull(0, FIRST)["w"].tolist() == [1.0, 2.0]
    store.commit(1.0)
    assert store.pull(0, FIRST)["w"].tolist() == [10.0, 4.0]
    assert store.pull(1, FIRST)["w"].tolist() == [20.0, 8.0]
    assert store.pull(2, FIRST)["w"].tolist() == [1.0, 2.0]
    assert held(store) == [1.0, 2.0, 3.0]


def test_own_models_are_copies() -> None:
    store, mine = own(), torch.tensor([10.0, 4.0])
    store.push(Contribution(0, FIRST, {"w": mine}, 1))
    store.commit(1.0)
    mine.zero_()
    store.pull(0, FIRST)["w"].zero_()
    assert store.pull(0, FIRST)["w"].tolist() == [10.0, 4.0]
