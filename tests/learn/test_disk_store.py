"""The store on disk: the same bits as the one in memory, and whole checkpoints whatever happens."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msfusion.capture import capture
from msfusion.core.axes import AxisMap, Fixed, Selection, count, positions
from msfusion.core.merge import Contribution, Shift
from msfusion.core.seeds import derive
from msfusion.errors import Diverged, UserError
from msfusion.learn import disk_store
from msfusion.learn.disk_store import DiskStore
from msfusion.learn.initial import write_initial
from msfusion.learn.local import seeded
from msfusion.learn.shards import INDEX, SINGLE, Shards, Spec, create, loaded, scratch
from msfusion.learn.store import MemoryStore
from msfusion.models import build

SMALL = {"layers": 2, "heads": 4, "embed": 16, "block": 8, "vocabulary": 11}
MODELS = {
    "gpt": SMALL,
    "gpt, tied": {**SMALL, "tie": True},
    "resnet18": {"width": 4},
}


def model_of(row: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, AxisMap]:
    with seeded(0, torch.device("cpu")):
        module, example = build(row.partition(",")[0], None, MODELS[row])
    return module.to(dtype), capture(module, example).axes


def values_of(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def write(folder: Path, values: dict[str, Tensor], shard_bytes: int) -> Path:
    specs = {name: Spec.of(value) for name, value in values.items()}
    shards = create(folder, specs, shard_bytes)
    for name, value in values.items():
        shards[name].copy_(value)
    shards.sync()
    return folder


def selections(axes: AxisMap) -> list[Selection]:
    """A window that goes round the end, one that does not, and all."""
    sizes = {name: axes.axes[name].size for name in axes.cuttable}
    round_the_end = {n: ((0, 1), (size - 1, size)) for n, size in sizes.items() if size > 2}
    return [round_the_end, {n: ((0, max(1, size // 2)),) for n, size in sizes.items()}, {}]


def contribution(axes: AxisMap, names: frozenset[str], number: int, selection: Selection) -> Contribution:
    generator = torch.Generator().manual_seed(number)
    shapes = {n: [count(positions(d, selection)) for d in axes.tensors[n]] for n in sorted(names)}
    values = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    return Contribution(number, selection, values, weight=1.0 + number)


def stores(
    row: str, folder: Path, shard_bytes: int = 4000, dtype: torch.dtype = torch.float32
) -> tuple[MemoryStore, DiskStore, AxisMap, frozenset[str]]:
    module, axes = model_of(row, dtype)
    names = frozenset(n for n, _ in module.named_parameters())
    values = values_of(module)
    source = write(folder / "source", values, shard_bytes)
    disk = DiskStore(source, folder / "store", axes, names, shard_bytes=shard_bytes)
    return MemoryStore({n: v.clone() for n, v in values.items()}, axes, names), disk, axes, names


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.dtype == second[name].dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", MODELS)
def test_equal_to_the_store_in_memory_bit_for_bit(row: str, dtype: torch.dtype, tmp_path: Path) -> None:
    memory, disk, axes, names = stores(row, tmp_path, dtype=dtype)
    for round in range(2):
        for number, selection in enumerate(selections(axes)[: 2 + round]):
            assert_same(memory.pull(number, selection), disk.pull(number, selection))
            for store in (memory, disk):
                store.push(contribution(axes, names, 10 * round + number, selection))
        for store in (memory, disk):
            store.commit(0.5 + round)
        assert_same(dict(memory.state()), dict(disk.state()))
    assert disk.commits == 2


def test_a_store_opened_again_goes_on_from_the_last_commit(tmp_path: Path) -> None:
    memory, disk, axes, names = stores("gpt", tmp_path)
    for store in (memory, disk):
        store.push(contribution(axes, names, 1, selections(axes)[0]))
        store.commit(1.0)
    disk.push(contribution(axes, names, 2, {}))  # never committed
    again = DiskStore(tmp_path / "source", tmp_path / "store", axes, names)
    assert again.commits == 1
    assert_same(dict(memory.state()), dict(again.state()))


def test_the_source_is_never_changed(tmp_path: Path) -> None:
    _, disk, axes, names = stores("gpt", tmp_path)
    before = {file.name: file.read_bytes() for file in (tmp_path / "source").iterdir()}
    disk.push(contribution(axes, names, 1, {}))
    disk.commit(1.0)
    assert {file.name: file.read_bytes() for file in (tmp_path / "source").iterdir()} == before


@pytest.mark.parametrize("moment", ["create", "sync"])
def test_a_crash_in_a_commit_leaves_the_model_before_it(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, disk, axes, names = stores("gpt", tmp_path)
    before = {name: value.clone() for name, value in disk.state().items()}
    disk.push(contribution(axes, names, 1, {}))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(disk_store, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            disk.commit(1.0)
    again = DiskStore(tmp_path / "source", tmp_path / "store", axes, names)
    assert_same(dict(again.state()), before)
    again.push(contribution(axes, names, 1, {}))
    again.commit(1.0)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["000001", "CURRENT"]


def test_what_is_sealed_into_a_commit_counts_if_the_commit_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, disk, axes, names = stores("gpt", tmp_path)

    def seal(text: str) -> Callable[[Path, object], None]:
        return lambda folder, shift: (folder / "note").write_text(text) and None

    disk.push(contribution(axes, names, 1, {}))
    disk.commit(1.0, seal("first"))
    disk.commit(1.0, seal("nothing was pushed"))
    assert (disk.path / "note").read_text() == "nothing was pushed"
    disk.push(contribution(axes, names, 1, {}))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DiskStore, "_point_to", crash)
    with pytest.raises(KeyboardInterrupt):
        disk.commit(1.0, seal("second"))
    again = DiskStore(tmp_path / "source", tmp_path / "store", axes, names)
    assert (again.commits, (again.path / "note").read_text()) == (1, "nothing was pushed")


def test_the_shift_is_that_of_the_store_in_memory(tmp_path: Path) -> None:
    module, axes = model_of("gpt")
    names = frozenset(n for n, _ in module.named_parameters())
    source = write(tmp_path / "source", values_of(module), 4000)
    disk = DiskStore(source, tmp_path / "store", axes, names, measure=True)
    memory = MemoryStore(values_of(module), axes, names, measure=True)
    for number, selection in enumerate(selections(axes)):
        for store in (memory, disk):
            store.push(contribution(axes, names, number, selection))
    shift = memory.commit(1.0)
    assert shift is not None
    assert disk.commit(1.0) == shift
    assert disk.commit(1.0) == Shift(0.0, 0.0)


def test_discard_and_refused_contributions_leave_nothing(tmp_path: Path) -> None:
    memory, disk, axes, names = stores("gpt", tmp_path)
    disk.push(contribution(axes, names, 1, {}))
    disk.discard()
    broken = contribution(axes, names, 2, {})
    list(broken.values.values())[-1].fill_(torch.nan)
    with pytest.raises(UserError, match="finite"):
        disk.push(broken)
    disk.commit(1.0)
    assert disk.commits == 0
    assert_same(dict(memory.state()), dict(disk.state()))


def test_restore(tmp_path: Path) -> None:
    _, disk, axes, names = stores("resnet18", tmp_path)
    saved = {name: value.clone() for name, value in disk.state().items()}
    disk.push(contribution(axes, names, 1, {}))
    disk.commit(1.0)
    assert not torch.equal(disk.state()["stem.weight"], saved["stem.weight"])
    disk.restore(saved)
    assert_same(dict(disk.state()), saved)


def test_names_of_the_checkpoint_and_buffers_of_its_own(tmp_path: Path) -> None:
    module, axes = model_of("resnet18")
    values = values_of(module)
    buffers = {name: value for name, value in values.items() if "running" in name or "num_batches" in name}
    renamed = {f"net.{name}": value for name, value in values.items() if name not in buffers}
    source = write(tmp_path / "source", {**renamed, "unused": torch.arange(5)}, 10**9)
    (source / "config.json").write_text("{}")
    names = frozenset(n for n, _ in module.named_parameters())
    disk = DiskStore(
        source, tmp_path / "store", axes, names, names={n: f"net.{n}" for n in names}, buffers=buffers
    )
    assert_same(disk.pull(0, {}), {name: values[name] for name in axes.tensors})
    disk.push(contribution(axes, names, 1, {}))
    disk.commit(1.0)
    written = load_file(disk.path / "model.safetensors")
    assert written.keys() == {*renamed, "unused"}
    assert torch.equal(written["unused"], torch.arange(5))
    assert (disk.path / "config.json").read_text() == "{}"


def test_another_model_is_refused(tmp_path: Path) -> None:
    module, axes = model_of("gpt")
    names = frozenset(n for n, _ in module.named_parameters())
    values = values_of(module)
    lacking = write(tmp_path / "a", {n: v for n, v in values.items() if n != "norm.bias"}, 10**9)
    with pytest.raises(UserError, match=r"expected norm\.bias in"):
        DiskStore(lacking, tmp_path / "s", axes, names)
    other = write(tmp_path / "b", {**values, "norm.bias": torch.zeros(3)}, 10**9)
    with pytest.raises(UserError, match=r"norm\.bias of shape \(16,\)"):
        DiskStore(other, tmp_path / "s", axes, names)


# --- the files


def test_files_are_what_safetensors_reads(tmp_path: Path) -> None:
    values = {
        "scalar": torch.tensor(3),
        "half": torch.randn(3, 5).half(),
        "double": torch.randn(7).double(),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "brain": torch.randn(2, 2).bfloat16(),
    }
    assert_same(load_file(write(tmp_path / "one", values, 10**9) / "model.safetensors"), values)
    folder = write(tmp_path / "many", values, 30)
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    assert table.keys() == values.keys()
    assert len(set(table.values())) > 2
    assert all(
        load_file(folder / file).keys() == {n for n in table if table[n] == file} for file in table.values()
    )
    assert_same(dict(Shards(folder)), values)


def test_files_of_safetensors_are_read(tmp_path: Path) -> None:
    values = {"a": torch.randn(3, 5), "b": torch.arange(3, dtype=torch.int8), "c": torch.randn(3).half()}
    save_file(values, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert_same(dict(Shards(tmp_path / "x.safetensors")), values)


def test_a_file_may_be_read_as_often_as_one_likes(tmp_path: Path) -> None:
    """Reading it a hundred times takes no memory for good: fewer objects than it holds tensors."""
    tensors = {f"t{n}": torch.full((3,), n) for n in range(50)}
    save_file(tensors, tmp_path / "some.safetensors")

    def read() -> int:
        for _ in range(100):
            got = loaded(tmp_path / "some.safetensors")
        assert all(torch.equal(got[name], value) for name, value in tensors.items())
        del got
        return sys.getallocatedblocks()

    read()
    before = read()
    assert read() - before < 50


@pytest.mark.parametrize("cut", [3, 60, -1])
def test_broken_files(cut: int, tmp_path: Path) -> None:
    save_file({"a": torch.randn(30)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"x\.safetensors to be a whole safetensors file"):
        Shards(tmp_path / "x.safetensors")


def full(descriptor: int, start: int, size: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_files_take_their_disk_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    create(folder, {"a": Spec(torch.float32, (100_000,))})
    assert (folder / SINGLE).stat().st_blocks * 512 >= 400_000


def test_a_full_disk_is_said_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"room for 4\d\d bytes at .*, got 'No space .*' with \d+ bytes free"):
        create(tmp_path / "new", {"a": Spec(torch.float32, (80,))})
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match=f"room for 40 bytes at {tmp_path}, got"):
        scratch(tmp_path, (10,), torch.float32)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a safetensors file"):
        Shards(tmp_path)
    folder = write(tmp_path / "many", {"a": torch.randn(9), "b": torch.randn(9)}, 30)
    next(folder.glob("*-of-00002.safetensors")).unlink()
    with pytest.raises(UserError, match=r"expected the shard model-0000[12]-of-00002\.safetensors"):
        Shards(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(UserError, match="expected an index"):
        Shards(folder)


# --- initial values


@pytest.mark.parametrize("row", MODELS)
def test_initial_values_are_those_of_the_models_own_code(row: str, tmp_path: Path) -> None:
    seed = derive(0, "model")
    with seeded(seed, torch.device("cpu")):
        module, _ = build(row.partition(",")[0], None, MODELS[row])
    before = torch.get_rng_state()
    shards = write_initial(
        lambda: build(row.partition(",")[0], None, MODELS[row])[0], tmp_path / "new", seed, shard_bytes=4000
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(dict(shards), values_of(module))
    assert_same(dict(Shards(tmp_path / "new")), values_of(module))


class Peculiar(nn.Module):
    """Ties, random buffers, a parameter replaced, a type changed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.drawn = nn.Parameter(torch.randn(6) * 0.3)
        self.recurrent = nn.LSTM(4, 3)
        self.register_buffer("noise", torch.randn(3))
        self.register_buffer("hidden", torch.randn(3), persistent=False)
        nn.init.orthogonal_(self.first.weight)
        self.replaced = nn.Linear(2, 2)
        self.replaced = nn.Linear(3, 3, bias=False)
        self.half = nn.Linear(3, 3).half()


def test_initial_values_of_a_peculiar_model(tmp_path: Path) -> None:
    with seeded(5, torch.device("cpu")):
        want = values_of(Peculiar())
    shards = write_initial(Peculiar, tmp_path / "new", 5)
    assert_same(dict(shards), {name: value for name, value in want.items() if name != "hidden"})


def test_a_model_that_is_never_the_same_is_refused(tmp_path: Path) -> None:
    sizes = iter((3, 4))
    with pytest.raises(UserError, match="the same parameters twice"):
        write_initial(lambda: nn.Linear(next(sizes), 2), tmp_path / "new", 0)


class Looking(nn.Module):
    """Looks at values while it is made, gives a parameter others through .data, and has complex ones."""

    def __init__(self, places: list[str | None] | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        nn.init.constant_(self.second.bias, self.first.weight.abs().mean().item())
        if places is not None:
            places.append(self.first.weight.untyped_storage().filename)
        self.second.weight.data = torch.rand(4, 4)
        self.turn = nn.Parameter(torch.randn(5, dtype=torch.complex64))


def test_initial_values_of_a_model_that_looks_at_values(tmp_path: Path) -> None:
    with seeded(5, torch.device("cpu")):
        want = values_of(Looking())
    assert_same(dict(write_initial(Looking, tmp_path / "new", 5)), want)
    assert_same(load_file(tmp_path / "new" / SINGLE), want)


def test_no_memory_holds_a_model_that_looks_at_values(tmp_path: Path) -> None:
    places: list[str | None] = []
    write_initial(lambda: Looking(places), tmp_path / "new", 5)
    assert len(places) == 2
    assert places[0] is not None  # the second time it is made in the checkpoint


def test_a_type_that_safetensors_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got turn of torch\.complex128"):
        create(tmp_path / "new", {"turn": Spec(torch.complex128, (2,))})


class Named(nn.Module):
    """Its values are set by a name of its own, after the parameter is registered."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.empty(8, 4))
        self.register_parameter("weight", weight)
        nn.init.normal_(weight)


def test_values_that_are_set_by_another_name_are_written(tmp_path: Path) -> None:
    with seeded(3, torch.device("cpu")):
        expected = Named().weight.detach().clone()
    shards = write_initial(Named, tmp_path / "initial", 3)
    assert torch.equal(shards["weight"], expected)


def test_a_commit_keeps_no_values_that_are_not_finite(tmp_path: Path) -> None:
    write(tmp_path / "source", {"w": torch.tensor([1.0, 2.0])}, 1000)
    axes = AxisMap({"w": (Fixed(2),)}, {})
    store = DiskStore(tmp_path / "source", tmp_path / "store", axes, frozenset({"w"}))
    sealed = []
    moved = Contribution(0, {}, {"w": torch.tensor([4.0, -2.0])}, 1.0)
    huge = Contribution(1, {}, {"w": torch.tensor([3e38, 0.0])}, 9.0)
    assert store.change(moved) == pytest.approx(math.sqrt((3**2 + 4**2) / 2))
    store.push(moved)
    store.commit(1.0)
    store.push(huge)
    with pytest.raises(Diverged, match="expected merged values that are finite, got NaN or infinity in w"):
        store.commit(1.0, lambda folder, shift: sealed.append(folder))
    assert not sealed
    assert [path.name for path in (tmp_path / "store").iterdir() if path.is_dir()] == ["000001"]
    assert store.commit(1.0) is None
    assert store.state()["w"].tolist() == [4.0, -2.0]
