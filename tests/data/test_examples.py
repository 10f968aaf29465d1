"""Batches: the three-number cases first."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from msfusion.data import LabelledImages, TokenBlocks, fetch
from msfusion.data.augment import crop_and_flip
from msfusion.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(indices: list[int], augment: bool = False, side: int = 1) -> LabelledImages:
    stored = torch.tensor([10, 20, 30, 40], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, side, side)
    return LabelledImages(
        images=stored.contiguous(),
        labels=torch.tensor([0, 1, 2, 3]),
        indices=torch.tensor(indices, dtype=torch.int64),
        mean=torch.tensor([[[10.0]]]),
        std=torch.tensor([[[5.0]]]),
        augment=augment,
    )


def test_images_are_normalised_and_chosen_by_indices() -> None:
    x, y = images([3, 1, 0]).batch(torch.tensor([0, 2]))
    assert x.flatten().tolist() == [6.0, 0.0]
    assert x.shape == (2, 1, 1, 1)
    assert x.dtype == torch.float32
    assert y.tolist() == [3, 0]


def test_empty_dataset() -> None:
    empty = images([])
    assert len(empty) == 0
    with pytest.raises(IndexError):
        empty[0]


def test_item_equals_batch() -> None:
    data = images([3, 1, 0])
    x, y = data[1]
    assert (x.item(), y.item()) == (2.0, 1)
    assert [int(y) for _, y in data] == [3, 1, 0]  # iteration ends, by IndexError


def test_augmentation_needs_a_generator_and_follows_it() -> None:
    data = images([3, 1], augment=True, side=8)
    index = torch.tensor([0, 1])
    assert torch.equal(data.batch(index)[0], images([3, 1], side=8).batch(index)[0])
    first, again, other = (data.batch(index, generator(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crop_and_flip_moves_each_image_as_one() -> None:
    x = torch.arange(1.0, 33.0).view(1, 2, 4, 4).expand(256, 2, 4, 4)
    changed = crop_and_flip(x, generator())
    assert changed.shape == x.shape
    first, second = changed[:, 0], changed[:, 1]
    assert torch.equal(second[second > 0] - 16, first[first > 0])  # both channels moved alike
    centre = changed[:, 0, 1:3, 1:3].reshape(256, 4)
    assert len(torch.unique(centre, dim=0)) == 18  # 3 x 3 places, flipped or not
    assert torch.equal(x[0, 0].flatten(), torch.arange(1.0, 17.0))


def test_augmentation_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    crop_and_flip(torch.zeros(2, 1, 8, 8), generator())
    assert torch.equal(before, torch.get_rng_state())


def test_token_blocks() -> None:
    data = TokenBlocks(torch.tensor([7, 8, 9, 5, 6, 4], dtype=torch.uint8), start=1, stop=6, block=2)
    assert len(data) == 3
    x, y = data.batch(torch.tensor([0, 2]))
    assert x.tolist() == [[8, 9], [5, 6]]
    assert y.tolist() == [[9, 5], [6, 4]]
    assert x.dtype == y.dtype == torch.int64


@pytest.mark.parametrize(("stop", "examples"), [(3, 0), (4, 1), (6, 1), (7, 2), (9, 2), (10, 3)])
def test_disjoint_token_blocks(stop: int, examples: int) -> None:
    data = TokenBlocks(torch.arange(10), start=0, stop=stop, block=3, stride=3)
    assert len(data) == examples
    if examples:
        x, y = data.batch(torch.arange(examples))
        assert torch.equal(x.flatten(), torch.arange(3 * examples))
        assert torch.equal(y.flatten(), torch.arange(1, 3 * examples + 1))


class Pairs(Dataset[Any]):
    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.full(2, index, dtype=np.float32), index * 10


class Singles(Dataset[Any]):
    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(2)


class Fast(Pairs):
    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        return [(float(i), -i) for i in indices]


@pytest.mark.parametrize(
    ("dataset", "x", "y"),
    [
        (Pairs(), [[2, 2], [0, 0]], [20, 0]),
        (Fast(), [2, 0], [-2, 0]),
        (TensorDataset(torch.arange(4), torch.arange(4) * 10), [2, 0], [20, 0]),
        (Subset(Pairs(), [5, 6, 7]), [[7, 7], [5, 5]], [70, 50]),
        (images([0, 1, 3]), [[[[6]]], [[[0]]]], [3, 0]),
        (Subset(images([0, 1, 3]), [0, 1, 2]), [[[[6]]], [[[0]]]], [3, 0]),
    ],
)
def test_fetch_serves_any_dataset(dataset: Dataset[Any], x: list[Any], y: list[int]) -> None:
    inputs, targets = fetch(dataset, torch.tensor([2, 0]), generator())
    assert inputs.tolist() == x
    assert targets.tolist() == y


def test_fetch_wants_pairs() -> None:
    with pytest.raises(UserError, match=r"items of Singles to be pairs \(input, target\), got Tensor"):
        fetch(Singles(), torch.tensor([0]), None)


def test_a_data_loader_takes_the_datasets() -> None:
    x, y = next(iter(DataLoader(images([3, 1, 0]), batch_size=3)))
    assert x.shape == (3, 1, 1, 1)
    assert y.tolist() == [3, 1, 0]


def test_fetch_wants_inputs_of_one_part() -> None:
    pairs = [((torch.zeros(2), torch.zeros(3)), 1)] * 4
    with pytest.raises(UserError, match="got tuple and int: pack the parts"):
        fetch(pairs, torch.tensor([0, 1]), None)  # type: ignore[arg-type]


class Named(Pairs):
    """A dataset with a number of its own under the name of what ``Examples`` have as a method."""

    batch = 32


def test_an_attribute_of_the_users_own_is_no_method_of_the_packages() -> None:
    assert fetch(Named(), torch.tensor([1]), None)[1].tolist() == [10]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], r"of one shape each, got others \(.*\): pad or cut"),
        ([(Image.new("L", (2, 2)), 0)] * 2, "got Image and int: make tensors of them"),
        ([(torch.zeros(2), None)] * 2, "got Tensor and NoneType: make tensors of them"),
    ],
)
def test_items_that_are_no_batch_are_one_sentence(pairs: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fetch(pairs, torch.tensor([0, 1]), None)
