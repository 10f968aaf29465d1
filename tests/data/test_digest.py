"""Digests tell data apart, and say nothing of data that are not the package's own."""

import dataclasses

import torch
from torch.utils.data import TensorDataset

from msfusion.data import LabelledImages, TokenBlocks
from msfusion.data.digest import digest, divided

ONE = torch.ones(1, 1, 1)
IMAGES = LabelledImages(
    torch.arange(16, dtype=torch.uint8).view(4, 1, 2, 2),
    torch.tensor([0, 1, 1, 0]),
    torch.tensor([0, 2]),
    ONE,
    ONE,
)
TOKENS = TokenBlocks(torch.arange(9, dtype=torch.uint8), 0, 9, 2)


def test_one_other_value_anywhere_is_another_digest() -> None:
    image, label = IMAGES.images.clone(), IMAGES.labels.clone()
    image[3, 0, 1, 1] += 1
    label[1] = 0
    others = [{"images": image}, {"labels": label}, {"indices": torch.tensor([0, 3])}, {"mean": 2 * ONE}]
    found = [digest([dataclasses.replace(IMAGES, **{k: v})]) for one in others for k, v in one.items()]
    found += [digest([dataclasses.replace(TOKENS, stop=8)]), digest([TOKENS]), digest([IMAGES, TOKENS])]
    found += [digest([TOKENS, IMAGES]), digest([IMAGES])]
    assert None not in found
    assert len(set(found)) == len(found)


def test_copies_of_the_same_data_have_the_same_digest() -> None:
    copy = dataclasses.replace(IMAGES, images=IMAGES.images.clone())
    assert digest([copy, IMAGES]) == digest([IMAGES, IMAGES])


def test_data_of_the_users_own_have_none() -> None:
    assert digest([IMAGES, TensorDataset(ONE)]) is None


def test_peers_divide_what_has_the_same_labels_alike() -> None:
    assert divided(IMAGES) == divided(dataclasses.replace(IMAGES, images=IMAGES.images + 1))
    assert divided(IMAGES) != divided(dataclasses.replace(IMAGES, labels=1 - IMAGES.labels))
