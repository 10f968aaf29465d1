"""Who gets which examples."""

import numpy as np
import pytest

from msfusion.data import Data
from msfusion.data.config import Partition
from msfusion.data.partition import partition
from msfusion.errors import UserError

LABELS = np.arange(200) % 5
KINDS: list[Partition] = ["iid", "dirichlet", "pathological"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_goes_to_exactly_one_participant(kind: Partition) -> None:
    parts = partition(LABELS, Data(partition=kind), 5, seed=3)
    assert len(parts) == 5
    assert sorted(np.concatenate(parts)) == list(range(200))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: Partition) -> None:
    first, again, other = (
        [part.tolist() for part in partition(LABELS, Data(partition=kind), 5, seed)] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_iid_is_even_and_shuffled() -> None:
    parts = partition(LABELS, Data(partition="iid"), 3, seed=0)
    assert [len(part) for part in parts] == [67, 67, 66]
    assert not np.array_equal(parts[0], np.sort(parts[0]))


def test_pathological_gives_each_participant_its_number_of_classes() -> None:
    parts = partition(LABELS, Data(partition="pathological", classes_per_participant=2), 10, seed=0)
    assert all(len(set(LABELS[part])) == 2 for part in parts)


FEW = Data(partition="pathological", classes_per_participant=2)


@pytest.mark.parametrize("names", [(), ("ant", "bee", "cat", "dog", "eel")])
def test_pathological_tells_of_the_classes_that_it_leaves_out(names: tuple[str, ...]) -> None:
    with pytest.warns(UserWarning, match="leaves out the classes") as told:
        (part,) = partition(LABELS, FEW, 1, seed=0, names=names)
    assert len(part) == 80
    missing = sorted({*range(5)} - set(LABELS[part]))
    (message,) = [str(warning.message) for warning in told]
    called = ", ".join(names[i] if names else str(i) for i in missing)
    assert f"the classes {called}, which are 120 of the 200 training examples" in message
    assert "take more participants or raise data.classes_per_participant" in message


def test_it_names_no_more_than_ten() -> None:
    with pytest.warns(UserWarning, match=r"the classes (\w+, ){9}\w+ and 8 more, which are 180 of"):
        partition(np.arange(200) % 20, FEW, 1, seed=0)


def test_smaller_alpha_is_more_uneven() -> None:
    def spread(alpha: float) -> float:
        sizes = [len(p) for p in partition(LABELS, Data(alpha=alpha, min_examples=0), 5, seed=0)]
        return float(np.std(sizes))

    assert spread(0.1) > spread(1.0) > spread(100.0)


def test_dirichlet_is_the_default_and_meets_min_examples() -> None:
    parts = partition(LABELS, Data(alpha=0.2, min_examples=15), 5, seed=0)
    assert min(len(part) for part in parts) >= 15
    dirichlet = partition(LABELS, Data(partition="dirichlet", alpha=0.2, min_examples=15), 5, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(parts, dirichlet, strict=True))


def test_empty_participants_are_allowed_on_request() -> None:
    parts = partition(LABELS, Data(alpha=0.01, min_examples=0), 8, seed=0)
    assert min(len(part) for part in parts) == 0
    assert sum(len(part) for part in parts) == 200


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1]
    partition(LABELS, Data(), 4, seed=0)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize(
    ("config", "participants", "message"),
    [
        (Data(), 201, "got 201 participants for 200 examples"),
        (
            Data(alpha=0.01, min_examples=30),
            6,
            "at least 30 examples per participant, got fewer in every draw",
        ),
        (
            Data(partition="pathological", classes_per_participant=6),
            4,
            "from 1 to 5, the number of classes, got 6",
        ),
        (
            Data(partition="pathological", classes_per_participant=5),
            150,
            "got 150 participants with 5 classes",
        ),
        (Data(partition="iid", min_examples=10), 30, "at least 10 examples per participant, got 6"),
        (Data(partition="blocks"), 2, "'iid', 'dirichlet' or 'pathological' for images, got 'blocks'"),
    ],
)
def test_errors(config: Data, participants: int, message: str) -> None:
    with pytest.raises(UserError) as raised:
        partition(LABELS, config, participants, seed=0)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_there_is_too_little_of_is_what_the_sentence_names() -> None:
    for config, words in (
        (Data(partition="iid"), "expected at most .*: take fewer participants or give more data"),
        (Data(partition="iid", limit=2), "raise data.limit"),
        (Data(partition="iid", test_share=0.999), "lower data.test_share"),
    ):
        with pytest.raises(UserError, match=words):
            partition(np.array([0, 1]), config, 3, 0)
