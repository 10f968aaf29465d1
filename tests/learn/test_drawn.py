"""What a model draws at random beside its parameters is the same with and without values."""

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msfusion.learn.drawn import made_as_with_values
from msfusion.learn.in_files import into_a_file
from msfusion.learn.local import seeded
from msfusion.models import MODELS, build


class Noisy(nn.Module):
    """Draws buffers, tensors, arrays and numbers, before and behind parameters of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.randn(3)
        self.layer = nn.Linear(7, 9)
        self.recurrent = nn.LSTM(4, 3)
        nn.init.orthogonal_(self.layer.weight)
        nn.init.trunc_normal_(self.layer.weight[:, :5])
        self.own = nn.Parameter(torch.empty(5, 3).t())
        nn.init.normal_(self.own)
        with torch.no_grad():
            self.own.copy_(torch.randn_like(self.own)).bernoulli_(0.3)
        self.register_buffer("stored", torch.randn(40))
        self.register_buffer("hidden", torch.randn(17), persistent=False)
        self.plain = {"tables": [torch.rand(4, 4)], "mask": torch.rand(6) > 0.5}
        self.order = np.random.permutation(8)
        self.factor = float(torch.rand(()))


def drawn_by(module: Any) -> list[Any]:
    return [
        module.before,
        module.stored,
        module.hidden,
        module.plain["tables"][0],
        module.plain["mask"],
        torch.from_numpy(module.order),
        torch.tensor(module.factor),
    ]


def test_all_that_a_model_draws_beside_parameters_is_as_with_values() -> None:
    with seeded(3, torch.device("cpu")):
        want = drawn_by(Noisy())
    module, _, digest = made_as_with_values(lambda: (Noisy(), None), 3)
    assert all(p.is_meta for p in module.parameters())
    assert all(map(torch.equal, drawn_by(module), want))
    assert digest != made_as_with_values(lambda: (Noisy(), None), 4)[2]
    assert digest == made_as_with_values(lambda: (Noisy(), None), 3)[2]


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_drawn_beside_the_parameters_of_shipped_models(name: str) -> None:
    module, example, digest = made_as_with_values(lambda: build(name, None), 0)
    real, same = build(name, None)
    assert digest == ""
    assert all(p.is_meta for p in module.parameters())
    assert torch.equal(example[0], same[0])
    assert all(map(torch.equal, module.buffers(), real.buffers()))


class Reads(nn.Module):
    """Looks at values of a parameter while it is made, and gives another one others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.scale = self.first.weight.abs().mean().item()
        self.first.bias.data = torch.rand(4)


def test_what_follows_from_values_is_as_with_values() -> None:
    with seeded(3, torch.device("cpu")):
        want = Reads()
    assert made_as_with_values(lambda: (Reads(), None), 3)[0].scale == want.scale


def test_values_that_are_looked_at_lie_in_files() -> None:
    places: list[str | None] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.scale = self.first.weight.abs().mean().item()
            places.append(self.first.weight.untyped_storage().filename)

    module: Any = made_as_with_values(lambda: (Looks(), None), 3)[0]
    with seeded(3, torch.device("cpu")):
        assert torch.equal(module.first.weight, Looks().first.weight)
    *made, own = places
    assert made
    assert None not in made
    assert own is None


def counted(made: list[nn.Module]) -> Callable[[], tuple[nn.Module, Tensor]]:
    """Makes modules with a buffer that no seed decides."""

    def make() -> tuple[nn.Module, Tensor]:
        made.append(nn.Linear(2, 2))
        made[-1].register_buffer("count", torch.tensor(len(made)), persistent=False)
        return made[-1], torch.zeros(1)

    return make


def test_what_no_seed_decides_is_in_the_hash() -> None:
    assert made_as_with_values(counted([]), 0)[2] != made_as_with_values(counted([nn.Identity()]), 0)[2]


class Derived(nn.Module):
    """What it draws lies beside what it has from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.register_buffer("start", self.first.weight.detach().clone())
        self.register_buffer("noise", torch.rand(8), persistent=False)
        self.mixed = [self.first.weight, torch.rand(3)]
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.sparse = torch.eye(3).to_sparse()
        self.turned = torch.randn(2, dtype=torch.complex64).conj()


def derived_by(module: Any) -> list[Tensor]:
    norm = module.norm.parametrizations.weight[0]
    return [module.start, module.noise, module.mixed[1], norm._u, norm._v, module.turned]


def test_what_lies_beside_values_is_as_with_values() -> None:
    with seeded(3, torch.device("cpu")):
        want = derived_by(Derived())
    module, _, digest = made_as_with_values(lambda: (Derived(), None), 3)
    assert all(p.is_meta for p in module.parameters())
    assert module.mixed[0] is module.first.weight
    assert all(map(torch.equal, derived_by(module), want))
    assert digest != made_as_with_values(lambda: (Derived(), None), 4)[2]


class Coin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.turns = (torch.rand(3) > 0.5).tolist()


def test_two_seeds_may_draw_alike() -> None:
    told: dict[str, list[bool]] = {}
    for seed in range(20):
        with seeded(seed, torch.device("cpu")):
            want = Coin().turns
        module, _, digest = made_as_with_values(lambda: (Coin(), None), seed)
        assert module.turns == want
        assert told.setdefault(digest, want) == want


class Ragged(nn.Module):
    """Draws lists of any length, and keeps a table that its parts share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.near = [(torch.rand(8) > 0.5).nonzero().flatten().tolist() for _ in range(3)]
        self.known = {f"unit {int(torch.randint(99, ()))}": torch.rand(2)}
        self.parts = nn.ModuleList([nn.Identity(), nn.Identity()])
        for part in self.parts:
            part.shared = self.known
        self.scale = self.first.weight.detach().abs().amax(1).unsqueeze(1)
        self.alias = self.first.weight.data


def test_lists_of_any_length_and_shared_tables_are_as_with_values() -> None:
    with seeded(3, torch.device("cpu")):
        want = Ragged()
    module: Any = made_as_with_values(lambda: (Ragged(), None), 3)[0]
    assert module.near == want.near
    assert module.known.keys() == want.known.keys()
    assert module.parts[0].shared is module.parts[1].shared is module.known
    assert torch.equal(module.scale, want.scale)
    assert module.alias.is_meta


def test_how_often_a_model_is_made() -> None:
    made: list[type] = []

    def counted(kind: type[nn.Module]) -> int:
        made.clear()

        def make() -> tuple[nn.Module, None]:
            made.append(kind)
            return kind(), None

        made_as_with_values(make, 0)
        return len(made)

    assert counted(lambda: nn.Linear(3, 3)) == 2  # type: ignore[arg-type]
    assert counted(Reads) <= 4
    assert counted(Noisy) <= 6


class Many(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.all = nn.ParameterList([torch.zeros(2) for _ in range(number)])
        self.register_buffer("drawn", torch.rand(2))


def test_a_model_of_many_parameters_keeps_no_file_open_for_each() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, most[1]))
    try:
        made_as_with_values(lambda: (Many(200), None), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


def test_in_a_file_a_parameter_takes_what_it_spans() -> None:
    big = torch.arange(64.0).view(8, 8)
    row = into_a_file(nn.Parameter(big[3]))
    assert row.tolist() == big[3].tolist()
    assert row.untyped_storage().nbytes() == row.nbytes
    column = into_a_file(nn.Parameter(big[:, 2]))
    assert column.tolist() == big[:, 2].tolist()
    assert column.untyped_storage().filename is not None
    repeated = nn.Parameter(torch.ones(1).expand(4))
    assert into_a_file(repeated) is repeated
    assert into_a_file(nn.Parameter(torch.empty(0))).numel() == 0
