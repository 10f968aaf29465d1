"""Shards on a disk, while the versions that they belong to come and go."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from msfusion.core.axes import AxisMap, Fixed
from msfusion.errors import UserError
from msfusion.learn.shards import INDEX, Spec
from msfusion.peers.disk import Disk
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.gather import model_folder
from msfusion.peers.layout import Layout
from msfusion.peers.past import History
from msfusion.peers.states import Entry, Given, Version
from msfusion.runtimes.kept import Kept

FIRST, NEXT = Version(0, "first"), Version(1, "next")
HISTORY = History("first", FIRST, ())


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    tensors = {"w": Spec(torch.float32, (4, 3))}
    return Disk(tmp_path, Layout(AxisMap({"w": (Fixed(4), Fixed(3))}, {}), tensors, 2), FIRST)


def ones(tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.fill_(1)


def test_what_was_written_is_held_and_read(disk: Disk) -> None:
    disk.write(NEXT, 1, HISTORY, ones)
    assert disk.holds()[NEXT.text].shards == {1}
    (values,) = disk.shard(NEXT, 1).values()
    assert torch.equal(values, torch.ones(2, 3))


def test_a_version_that_is_removed_disturbs_who_writes_and_who_reads_it(disk: Disk) -> None:
    def removed(tensors: Mapping[str, Tensor]) -> None:
        ones(tensors)
        disk.discard_after(FIRST)

    with pytest.raises(Disturbed):
        disk.write(NEXT, 0, HISTORY, removed)
    assert NEXT.text not in disk.holds()
    with pytest.raises(Disturbed):
        disk.shard(NEXT, 0)
    disk.write(NEXT, 0, HISTORY, ones)
    assert disk.has(NEXT, 0)


def test_a_version_that_is_made_anew_meanwhile_does_not_get_half_a_shard(disk: Disk) -> None:
    def replaced(tensors: Mapping[str, Tensor]) -> None:
        disk.discard_after(FIRST)
        disk.write(NEXT, 1, HISTORY, ones)

    with pytest.raises(Disturbed):
        disk.write(NEXT, 0, HISTORY, replaced)
    assert disk.holds()[NEXT.text].shards == {1}


def test_a_disk_that_fails_is_no_disturbance(disk: Disk) -> None:
    def full(tensors: Mapping[str, Tensor]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        disk.write(NEXT, 0, HISTORY, full)
    assert NEXT.text not in disk.holds()


def test_what_is_no_version_is_let_be(disk: Disk, tmp_path: Path) -> None:
    disk.write(NEXT, 0, HISTORY, ones)
    foreign = [
        tmp_path / "versions" / ".DS_Store",
        tmp_path / "versions" / "000002-copy of next",
        tmp_path / "versions" / NEXT.text / "._00000.safetensors",
        tmp_path / "blocks" / ".DS_Store",
        tmp_path / "previous" / "._000001.safetensors",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    again = Disk(tmp_path, disk._layout, FIRST)
    assert again.holds() == disk.holds()
    assert Kept(tmp_path / "previous", 0, torch.device("cpu")).before(3) is None
    again.commit(NEXT)
    again.discard_after(FIRST)
    assert all(path.exists() for path in foreign if path.parent.name != NEXT.text)


def test_a_history_is_read_once_and_gone_with_its_version(disk: Disk, tmp_path: Path) -> None:
    history = History("first", FIRST, (Entry((Given(0, 8, 0.5, "digest"),), ()),))
    disk.write(NEXT, 0, history, ones)
    assert disk.history(NEXT) is history
    again = Disk(tmp_path, disk._layout, FIRST)
    read = again.history(NEXT)
    assert read == history
    assert again.history(NEXT) is read
    again.discard_after(FIRST)
    assert again.history(NEXT) is None


def test_no_more_files_are_open_the_larger_a_model_is(tmp_path: Path) -> None:
    """A map keeps a descriptor, and a process has 1024 of them on many systems."""
    tensors = {"w": Spec(torch.float32, (200, 3))}
    disk = Disk(tmp_path, Layout(AxisMap({"w": (Fixed(200), Fixed(3))}, {}), tensors, 200), FIRST)
    before = len(os.listdir("/proc/self/fd"))
    for shard in range(200):
        disk.write(NEXT, shard, HISTORY, ones)
    (first,) = disk.shard(NEXT, 0).values()
    total = sum(float(value.sum()) for shard in range(200) for value in disk.shard(NEXT, shard).values())
    assert total == 600
    assert len(os.listdir("/proc/self/fd")) - before < 100
    disk.release()
    assert first.sum() == 3  # its map is gone from the disk's list, not from under it


def test_only_a_model_is_replaced_by_an_export(tmp_path: Path) -> None:
    peer, folder = tmp_path / "peer", tmp_path / "full"
    assert model_folder(folder / "new", peer) == folder / "new"
    folder.mkdir()
    assert model_folder(folder, peer) == folder
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX):
        (folder / name).touch()
    assert model_folder(folder, peer) == folder
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(
        UserError, match=r"holds a model alone, as it is replaced, got .* with thesis\.txt in it"
    ):
        model_folder(folder, peer)
    with pytest.raises(UserError, match="a folder for the full model, got the file"):
        model_folder(folder / "thesis.txt", peer)
    with pytest.raises(UserError, match=r"to write the full model to .*, but not below .*thesis\.txt: name"):
        model_folder(folder / "thesis.txt" / "below" / "it", peer)


def test_an_export_goes_where_links_lead_to_and_never_around_the_peers_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other disk")
    assert model_folder(tmp_path / "link", tmp_path / "peer") == tmp_path / "other disk"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert model_folder(Path("."), tmp_path / "peer") == tmp_path / "here"
    for inside in (Path("."), Path("runs/peer-0")):
        with pytest.raises(UserError, match=r"outside .*here, where .* is"):
            model_folder(Path("."), inside)
