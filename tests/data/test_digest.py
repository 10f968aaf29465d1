"""Digests tell data apart, and say nothing of data that are not the package's own."""

import dataclasses

import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from msfusion.data import LabelledImages, TokenBlocks
from msfusion.data.digest import contents, digest, divided

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


def test_contents_are_those_of_all_splits_of_the_same_data() -> None:
    x, y = torch.arange(12.0).view(6, 2), torch.arange(6)
    whole = TensorDataset(x, y)
    known = contents([whole])
    assert known == contents([Subset(whole, [5, 0, 3]), Subset(Subset(whole, [1, 2, 4]), [2, 1, 0])])
    assert known == contents([TensorDataset(x[:2], y[:2]), TensorDataset(x[2:], y[2:])])
    assert known != contents([TensorDataset(x, y.flip(0))])
    assert known != contents([TensorDataset(x[1:], y[1:])])


def test_contents_of_what_may_be_drawn_anew_are_not_known() -> None:
    class Drawn(TensorDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            return tuple(torch.randn_like(part) for part in super().__getitem__(index))

    datasets: list[Dataset[object]] = [
        IMAGES,
        Drawn(torch.zeros(2, 3)),
        Subset(Drawn(torch.zeros(2, 3)), [0]),
    ]
    assert [contents([one]) for one in datasets] == [None, None, None]
