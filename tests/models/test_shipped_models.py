"""What sets each shipped model apart."""

import pytest
import torch

from msfusion.models.cnn import cnn
from msfusion.models.gpt import gpt
from msfusion.models.resnet import resnet18
from msfusion.models.vit import vit


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnet18_has_the_usual_number_of_parameters() -> None:
    assert parameters(resnet18()) == 11_173_962


def test_resnet_stages_halve_the_image() -> None:
    model = resnet18(width=4, blocks=(1, 1, 1))
    assert model.blocks(torch.zeros(1, 4, 32, 32)).shape == (1, 16, 8, 8)


def test_resnet_with_group_norm_treats_each_example_alone() -> None:
    model = resnet18(width=8, blocks=(1, 1), norm="group")
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


@pytest.mark.parametrize(("image", "side"), [(8, 2), (32, 4), (5, 2)])
def test_cnn_stops_pooling_at_2x2(image: int, side: int) -> None:
    model = cnn(channels=1, width=2, image=image)
    assert model.blocks(torch.zeros(1, 1, image, image)).shape == (1, 8, side, side)


def test_gpt_does_not_look_ahead() -> None:
    model = gpt(vocabulary=11, block=6, layers=2, heads=2, embed=8)
    idx = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 3, 9, 9, 9]])
    torch.testing.assert_close(model(idx)[:, :3], model(changed)[:, :3])
    assert not torch.allclose(model(idx)[:, 3:], model(changed)[:, 3:])


def test_gpt_takes_sequences_shorter_than_its_block() -> None:
    model = gpt(vocabulary=11, block=6, layers=1, heads=2, embed=8)
    assert model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 11)


def test_gpt_tie_shares_one_tensor() -> None:
    untied, tied = (gpt(vocabulary=11, block=6, layers=1, heads=2, embed=8, tie=t) for t in (False, True))
    assert tied.head.weight is tied.tokens.weight
    assert parameters(untied) - parameters(tied) == 11 * 8


def test_vit_looks_both_ways() -> None:
    model = vit(channels=1, image=8, patch=4, layers=1, heads=2, embed=8)
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    model.blocks(model.patches(x).flatten(2).transpose(1, 2) + model.positions)[0, 0].sum().backward()
    assert x.grad is not None
    assert x.grad[..., 4:, 4:].abs().sum() > 0


def test_dropout_acts_in_training_only() -> None:
    model = gpt(vocabulary=11, block=6, layers=1, heads=2, embed=8, dropout=0.5)
    idx = torch.zeros(1, 6, dtype=torch.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(idx), model(idx))
    model.eval()
    assert torch.equal(model(idx), model(idx))
