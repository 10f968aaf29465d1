"""Loading as a whole, on the bundled digits."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from msfusion.data import Data, LabelledImages, fetch, load
from msfusion.data.digits import bundled
from msfusion.data.load import mean_and_std
from msfusion.data.source import choose, stratified_split
from msfusion.errors import UserError


def images(dataset: object) -> LabelledImages:
    assert isinstance(dataset, LabelledImages)
    return dataset


def test_digits() -> None:
    federation = load(Data(), participants=4, seed=0)
    sizes = [len(images(d)) for d in federation.train]
    assert sum(sizes) + len(images(federation.test)) == 1797
    assert len(images(federation.test)) == pytest.approx(0.2 * 1797, abs=5)
    assert federation.inputs.shape == (1, 8, 8)
    assert federation.inputs.classes == 10
    assert federation.task == "classification"


def test_what_is_read_is_what_scikit_learn_reads() -> None:
    table, expected = bundled(), load_digits()
    assert np.array_equal(table[:, :64], expected.data)
    assert np.array_equal(table[:, 64], expected.target)


def test_training_images_are_normalised() -> None:
    (dataset,) = load(Data(partition="iid"), participants=1, seed=0).train
    x, _ = fetch(dataset, torch.arange(len(images(dataset))), None)
    assert abs(float(x.mean())) < 1e-4
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_participants_share_the_storage() -> None:
    first, second = (images(d) for d in load(Data(), participants=2, seed=0).train)
    assert first.images.data_ptr() == second.images.data_ptr()
    assert first.labels.data_ptr() == second.labels.data_ptr()


def test_same_arguments_same_data() -> None:
    first, again, other = (load(Data(limit=50), 2, seed) for seed in (0, 0, 1))
    index = torch.arange(10)
    assert torch.equal(fetch(first.train[0], index, None)[0], fetch(again.train[0], index, None)[0])
    assert not torch.equal(fetch(first.test, index, None)[0], fetch(other.test, index, None)[0])


def test_limits_and_size() -> None:
    federation = load(Data(partition="iid", limit=30, test_limit=7, image=4), participants=3, seed=0)
    assert [len(images(d)) for d in federation.train] == [10, 10, 10]
    assert len(images(federation.test)) == 7
    assert federation.inputs.shape == (1, 4, 4)


def test_training_data_alone_are_augmented() -> None:
    federation = load(Data(augment=True), participants=2, seed=0)
    index = torch.arange(20)

    def changed(dataset: object) -> bool:
        x, _ = images(dataset).batch(index, torch.Generator().manual_seed(0))
        return not torch.equal(x, images(dataset).batch(index)[0])

    assert changed(federation.train[0])
    assert not changed(federation.test)


def test_empty_participant_has_an_empty_dataset() -> None:
    federation = load(Data(alpha=0.01, min_examples=0, limit=30), participants=20, seed=0)
    sizes = [len(images(d)) for d in federation.train]
    assert min(sizes) == 0
    assert sum(sizes) == 30


@pytest.mark.parametrize("participants", [0, -1])
def test_at_least_one_participant(participants: int) -> None:
    with pytest.raises(UserError, match=f"at least 1 participant, got {participants}"):
        load(Data(), participants, seed=0)


def test_more_participants_than_examples() -> None:
    with pytest.raises(UserError, match="got 31 participants for 30 examples"):
        load(Data(limit=30), 31, seed=0)


def test_mean_and_std_by_hand() -> None:
    stored = torch.tensor([[[[1, 3]], [[5, 5]]], [[[1, 3]], [[5, 5]]]], dtype=torch.uint8)
    mean, std = mean_and_std(stored)
    assert mean.flatten().tolist() == [2.0, 5.0]
    assert std.flatten().tolist() == [1.0, 1.0]  # the second channel is constant


def test_mean_and_std_do_not_overflow() -> None:
    mean, std = mean_and_std(torch.full((3, 1, 300, 300), 255, dtype=torch.uint8))
    assert mean.item() == 255
    assert std.item() == 1


def test_stratified_split_by_hand() -> None:
    train, test = stratified_split(np.array([0, 0, 0, 0, 1, 1]), share=0.5, seed=0)
    assert len(test) == 3
    assert sorted([*train, *test]) == list(range(6))
    assert sum(row >= 4 for row in test) == 1


def test_choose() -> None:
    assert choose(3, None, 0, "x").tolist() == choose(3, 5, 0, "x").tolist() == [0, 1, 2]
    rows = choose(100, 10, 0, "x")
    assert len(set(rows)) == 10
    assert rows.tolist() == sorted(rows)
    assert rows.tolist() != choose(100, 10, 1, "x").tolist()
