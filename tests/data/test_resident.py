"""Data on the device: shared tensors are moved once, and batches are made there."""

import torch
from torch.utils.data import TensorDataset

from msfusion.data import LabelledImages, TokenBlocks, resident

META = torch.device("meta")
"""Beside the CPU the only device that every machine has: shapes, and no values."""


def images(number: int, *, augment: bool = False) -> list[LabelledImages]:
    pixels = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    labels, mean, std = torch.zeros(40, dtype=torch.int64), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return [
        LabelledImages(pixels, labels, torch.arange(4 * i, 4 * i + 4), mean, std, augment)
        for i in range(number)
    ]


def test_participants_still_share_what_they_share() -> None:
    data = images(10)
    moved = resident(data, META, room=10**9)
    assert all(isinstance(one, LabelledImages) and one.images.device == META for one in moved)
    assert len({id(one.images) for one in moved}) == 1  # type: ignore[attr-defined]
    assert all(one.images.device.type == "cpu" for one in data)
    assert [len(one) for one in moved] == [len(one) for one in data]  # type: ignore[arg-type]


def test_batches_are_made_and_augmented_there() -> None:
    """From indices and random numbers of the CPU; an operation on both devices would raise."""
    (one,) = resident(images(1, augment=True), META, room=10**9)
    draw = torch.Generator().manual_seed(0)
    x, y = one.batch(torch.tensor([2, 0]), draw)  # type: ignore[attr-defined]
    assert (x.device, y.device) == (META, META)
    assert x.shape == (2, 3, 8, 8)
    (tokens,) = resident([TokenBlocks(torch.arange(50), 0, 50, 8)], META, room=10**9)
    x, y = tokens.batch(torch.tensor([2, 0, 7]))  # type: ignore[attr-defined]
    assert (x.device, y.device, x.shape) == (META, META, (3, 8))


def test_random_numbers_do_not_depend_on_the_device() -> None:
    draws = []
    for device in ("cpu", "meta"):
        (one,) = resident(images(1, augment=True), torch.device(device), room=10**9)
        draw = torch.Generator().manual_seed(0)
        one.batch(torch.tensor([2, 0]), draw)  # type: ignore[attr-defined]
        draws.append(draw.get_state())
    assert torch.equal(*draws)


def test_what_does_not_fit_stays_where_it_is() -> None:
    """Counted once, though shared: 7,680 bytes of pixels, 320 of labels, 24 of scale, 32 per participant."""
    data = images(3)
    needed = 40 * 3 * 64 + 40 * 8 + 24 + 3 * 32
    assert resident(data, META, room=needed - 1) == data
    assert resident(data, META, room=needed) != data
    other = [TensorDataset(torch.zeros(3, 1), torch.zeros(3))]
    assert resident(other, META, room=10**9) == other
