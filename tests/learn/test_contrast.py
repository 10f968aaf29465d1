"""The contrastive term by hand, where representations come from, and what previous values are worth."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import msfusion
from msfusion.core.axes import Axis, Product
from msfusion.core.cut import overlay
from msfusion.errors import UserError
from msfusion.learn.contrast import Compared, Contrast, Place, contrast
from msfusion.learn.cost import cost
from msfusion.learn.local import Train, train
from msfusion.learn.objective import Objective
from msfusion.models import build
from msfusion.runtimes.run import Run

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def test_the_term_by_hand() -> None:
    """Cosine 1 with the merged model and 0 with the previous one, temperature 1/2: log(1 + e^-2)."""
    z, merged, previous = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert contrast(z, merged, previous, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert contrast(z, previous, merged, 0.5).item() == pytest.approx(math.log(1 + math.exp(2)))


def test_the_term_is_the_cross_entropy_of_two_similarities() -> None:
    z, merged, previous = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([F.cosine_similarity(z, merged), F.cosine_similarity(z, previous)], 1) / 0.3
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    assert contrast(z, merged, previous, 0.3).item() == pytest.approx(expected.item())


def test_nothing_pulls_where_both_comparisons_are_the_same() -> None:
    z = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    contrast(z, other, other, 0.5).backward()
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-7


class Tied(nn.Module):
    """Tokens; the head is the embedding, applied by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.middle = nn.Linear(5, 5)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.middle(self.embed(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.embed.weight.T


class Flat(Tied):
    """The same over all tokens one behind the other, as GPT-2 in transformers does."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.hidden(x).reshape(-1, 5)
        return torch.addmm(torch.zeros(9), rows, self.embed.weight.T).reshape(*x.shape, 9)


def representation(module: nn.Module, x: Tensor, on: Place = "representation") -> Tensor:
    return Compared(Contrast(1.0, on=on), {}, {})._run(module, {}, x)[1]


@pytest.mark.parametrize("kind", [Tied, Flat])
def test_the_representation_is_the_input_of_the_head(kind: type[Tied]) -> None:
    torch.manual_seed(0)
    module, x = kind(), torch.randint(9, (4, 3))
    assert torch.allclose(representation(module, x), module.hidden(x).mean(1))


class Written(nn.Module):
    """A head as it can be written: beside a weight that comes first, or by an operation less usual."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.middle, self.how = nn.Linear(6, 8), how
        self.head = nn.Parameter(torch.randn(4, 8))

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.middle(x))

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        match self.how:
            case "einsum":
                return torch.einsum("vd,bd->bv", self.head, z)
            case "inner":
                return torch.inner(z, self.head)
            case "a view of the weight":
                return torch.einsum("vd,bd->bv", self.head.view(2, 2, 8).flatten(0, 1), z)
            case _:
                return torch.tensordot(z, self.head, dims=([1], [1]))


@pytest.mark.parametrize("how", ["einsum", "inner", "a view of the weight", "tensordot"])
def test_the_representation_is_no_weight_however_the_head_is_written(how: str) -> None:
    module = Written(how)
    assert torch.allclose(representation(module, X), module.hidden(X))


class TimeFirst(nn.Module):
    """What is inside is of shape (time, examples, units), as PyTorch's own transformer layers have it."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.embed, self.head, self.first = nn.Embedding(9, 5), nn.Linear(5, 9), first

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x.T if self.first else x))
        out: Tensor = self.head(h.cumsum(0 if self.first else 1))
        return out.transpose(0, 1) if self.first else out


@pytest.mark.parametrize("length", [8, 12])
def test_representations_that_belong_to_no_example_are_refused(length: int) -> None:
    torch.manual_seed(0)
    x = torch.randint(9, (4, length))
    Compared(Contrast(1.0), {}, {}).check(TimeFirst(first=False), x)
    with pytest.raises(UserError, match=r"along its input's first dimension, found.*contrast\.on=logits"):
        Compared(Contrast(1.0), {}, {}).check(TimeFirst(first=True), x)
    Compared(Contrast(1.0, on="logits"), {}, {}).check(TimeFirst(first=True), x)


def test_what_a_model_draws_is_no_other_order() -> None:
    for _ in range(5):
        Compared(Contrast(1.0), {}, {}).check(Drawing(), X)


def test_a_run_with_such_a_model_is_refused() -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randint(9, (20, 8)), torch.randint(9, (20, 8)))
    run = Run(width=1.0, rounds=2, contrast=Contrast(0.5), train=Train(batch=4, steps=2))
    with pytest.raises(UserError, match="found another order"):
        msfusion.simulate(TimeFirst(first=True), [data, data], data, run)


def test_the_representation_of_pixels_is_pooled() -> None:
    module, x = nn.Conv2d(2, 3, 1), torch.randn(4, 2, 5, 5)
    assert torch.allclose(representation(module, x), x.mean((2, 3)), atol=1e-6)
    assert torch.allclose(representation(module, x, "logits"), module(x).mean((2,)).mean(1), atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "gpt", "vit", "mlp"])
def test_shipped_models_have_one(name: str) -> None:
    module, (x, *_) = build(name, None, {})
    head = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    got = representation(module.eval(), x)
    want = seen[-1].reshape(len(x), -1, seen[-1].shape[-1]).mean(1)
    assert torch.allclose(got, want, atol=1e-5)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"contrast\.on=logits"):
        representation(nn.Embedding(9, 5), torch.tensor([1, 2]))
    assert representation(nn.Embedding(9, 5), torch.tensor([1, 2]), "logits").shape == (2, 5)


# --- in training


def net(dropout: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def values(module: nn.Module, change: float = 0.0) -> dict[str, Tensor]:
    return {
        n: t.detach().clone() + (change if t.is_floating_point() else 0)
        for n, t in module.state_dict().items()
    }


def trained(compared: Compared | None, **changes: Any) -> dict[str, Tensor]:
    module = net()
    data = TensorDataset(X.repeat(4, 1), torch.arange(16) % 3)
    train(module, data, Objective(), Train(batch=4, steps=4, **changes), 0.1, 7, compared)
    return values(module)


def test_a_weight_of_nothing_changes_nothing() -> None:
    """Dropout masks, statistics and steps are the same: the comparisons draw no random number."""
    off = trained(None)
    nothing = trained(Compared(Contrast(0.0), values(net()), values(net(), 0.3)))
    assert all(torch.equal(off[name], nothing[name]) for name in off)


class Drawing(nn.Module):
    """Draws in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x + 0.1 * torch.randn_like(x))
        return out


def test_so_it_is_where_a_model_draws_in_any_mode() -> None:
    ends = []
    for compared in (None, Compared(Contrast(0.0), values(Drawing()), values(Drawing(), 0.3))):
        module = Drawing()
        data = TensorDataset(X.repeat(4, 1), torch.arange(16) % 3)
        train(module, data, Objective(), Train(batch=4, steps=4), 0.1, 7, compared)
        ends.append(values(module))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


class Kept(nn.Sequential):
    """Its batch norm stays in evaluation mode."""

    def train(self, mode: bool = True) -> "Kept":
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("kind", ["kept batch norm", "instance norm"])
def test_norms_compare_with_the_statistics_that_they_train_with(kind: str) -> None:
    """Against itself a model has a cosine of 1."""
    module: nn.Module = Kept(*net(0.0))
    if kind == "instance norm":
        norm = nn.InstanceNorm1d(2, track_running_stats=True)
        module = nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), norm, nn.Flatten(), nn.Linear(8, 3))
    for part in module.modules():
        if isinstance(getattr(part, "running_mean", None), Tensor):
            part.running_mean += 1.0
    same = values(module)
    _, term = Compared(Contrast(1.0), same, values(module, 0.3)).forward(module.train(), X)
    away = representation_under(module, values(module, 0.3))
    z = representation(module, X)
    assert term.item() == pytest.approx(contrast(z, z, away, 0.5).item(), rel=1e-4)


def representation_under(module: nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    return Compared(Contrast(1.0), {}, {})._run(module, tensors, X)[1].detach()


def test_the_term_moves_towards_the_merged_model_and_away_from_the_previous() -> None:
    """Trained on the term alone, the similarity with the merged model wins."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    merged, previous = (
        {
            n: torch.randn(t.shape, generator=torch.Generator().manual_seed(s))
            for n, t in module.state_dict().items()
        }
        for s in (1, 2)
    )
    compared = Compared(Contrast(1.0), merged, previous)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    terms = []
    for _ in range(60):
        _, term = compared.forward(module, X)
        optimizer.zero_grad()
        term.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        terms.append(term.item())
    assert terms[-1] < 0.5 * terms[0]


def test_the_comparisons_are_left_as_they_were() -> None:
    module = net()
    merged, previous = values(module), values(module, 0.3)
    before = {n: t.clone() for n, t in previous.items() if "running" not in n and "num" not in n}
    running = module[1].running_mean
    Compared(Contrast(1.0), merged, previous).forward(module.train(), X)
    assert all(torch.equal(before[n], previous[n]) for n in before)
    assert all(part.training for part in module.modules())
    assert module[1].running_mean is running
    assert module[1].num_batches_tracked == 1, "only the model in training has seen the batch"


def test_every_other_step() -> None:
    assert [s for s in range(7) if Compared(Contrast(1.0, every=3), {}, {}).due(s)] == [0, 3, 6]
    merged, previous = values(net()), values(net(), 0.3)
    one, two, never = (
        trained(Compared(Contrast(1.0, every=every), merged, previous)) if every else trained(None)
        for every in (1, 2, 0)
    )
    assert not torch.equal(one["0.weight"], two["0.weight"])
    assert not torch.equal(two["0.weight"], never["0.weight"])


# --- cost


@pytest.mark.parametrize(("every", "due"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_two_more_forward_passes_are_counted(every: int, due: int) -> None:
    """4 examples, 3 -> 5 -> 2: 120 + 80 operations forward, in ``due`` of four steps."""
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    plain = cost(module, (torch.zeros(2, 3),), Train(batch=4, steps=4))
    got = cost(module, (torch.zeros(2, 3),), Train(batch=4, steps=4), Contrast(1.0, every=every))
    assert got.flops_per_step - plain.flops_per_step == 2 * 200 * due / 4
    assert got.bytes_per_round == plain.bytes_per_round


# --- previous values


def test_previous_values_on_what_two_windows_share() -> None:
    """Units 1, 2, 3 now; 3, 0 and 1 before (cyclic: stored as 0, 1, 3)."""
    now, before = {"a": ((1, 4),)}, {"a": ((0, 2), (3, 4))}
    got = overlay(torch.tensor([1.0, 2, 3]), now, torch.tensor([10.0, 11, 13]), before, (Axis("a", 4),))
    assert got.tolist() == [11, 2, 13]


def test_overlay_equals_a_full_tensor_written_twice() -> None:
    dims = (Product((Axis("a", 90), Axis("b", 2))), Axis("a", 90))
    scattered = {"a": tuple((i, i + 1) for i in range(0, 90, 2))}
    run, full = {"a": ((10, 50),)}, torch.arange(180 * 90.0).reshape(180, 90)
    from msfusion.core.merge import take

    for own, other in ((scattered, run), (run, scattered), (run, {"a": ((60, 70),)})):
        base, over = take(torch.zeros_like(full), dims, own), take(full + 1, dims, other)
        mask = torch.zeros(90, dtype=torch.bool)
        for a, b in other["a"]:
            mask[a:b] = True
        marked = (full + 1) * mask.repeat_interleave(2)[:, None] * mask
        assert torch.equal(overlay(base, own, over, other, dims), take(marked, dims, own))
