"""Who may join, and what is taken from those who have."""

import datetime
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from group import PRESET, Group, Nursery, Replay

from msfusion.commands.peer import route
from msfusion.errors import UserError
from msfusion.peers.certificates import AUTHORITY, AUTHORITY_KEY, add_member, check_own, new_group
from msfusion.peers.settings import Link, number_of
from msfusion.peers.transport import configuration, opened


def keyring(folder: Path, names: str = "0123") -> Path:
    new_group(folder, "test")
    for name in names:
        add_member(folder, name)
    return folder


def intruder(folder: Path, kind: str, group: Path) -> Path:
    """Certificates of somebody who calls itself participant 3 and is not on the access list of the group."""
    if kind == "another authority":
        return keyring(folder)
    shutil.copytree(group, folder)
    add_member(folder, "3")
    return folder


def test_keys_are_the_owners_alone(tmp_path: Path) -> None:
    folder = keyring(tmp_path / "certs", "0")
    for name in (AUTHORITY_KEY, "0.key"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    assert (folder / AUTHORITY).exists()
    with pytest.raises(UserError, match="which has one"):
        add_member(folder, "0")
    with pytest.raises(UserError, match="expected a name"):
        add_member(folder, "../0")


def spoil_authority(folder: Path) -> None:
    (folder / AUTHORITY).write_bytes(b"")


def spoil_certificate(folder: Path) -> None:
    (folder / "0.pem").write_bytes(b"junk")


def empty_key(folder: Path) -> None:
    (folder / "0.key").write_bytes(b"")


def anothers_key(folder: Path) -> None:
    shutil.copy(folder / "1.key", folder / "0.key")


def test_names_are_as_long_as_a_certificate_takes(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    with pytest.raises(UserError, match=r"a group's name of at most 54 bytes in UTF-8 for .*, got 55"):
        new_group(folder, "g" * 55)
    new_group(folder, "g" * 54)
    for name in ("a" * 65, "ü" * 33):
        with pytest.raises(UserError, match=r"a name of at most 64 bytes in UTF-8 for .*, got 6"):
            add_member(folder, name)
    for name in ("a" * 64, "ü" * 32):
        add_member(folder, name)
        check_own(folder, name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_authority, "expected a PEM file .*authority.pem, got"),
        (spoil_certificate, "expected a PEM file .*0.pem, got"),
        (empty_key, "expected a PEM file .*0.key, got"),
        (anothers_key, "expected 0.key in .* to be the key of 0.pem, got another's"),
    ],
)
def test_files_that_are_no_certificates_are_named(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = keyring(tmp_path / "certs", "01")
    configuration(Link(certificates=folder), "0", "test", 10.0)
    spoil(folder)
    with pytest.raises(UserError, match=said):
        configuration(Link(certificates=folder), "0", "test", 10.0)


def junk_for_key(folder: Path) -> None:
    (folder / AUTHORITY_KEY).write_bytes(b"junk")


def key_of_another(folder: Path) -> None:
    shutil.copy(folder / "0.key", folder / AUTHORITY_KEY)


def without_authority(folder: Path) -> None:
    (folder / AUTHORITY).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (junk_for_key, "expected a PEM file .*authority.key, got"),
        (key_of_another, "expected authority.key in .* to be the key of authority.pem, got another's"),
        (without_authority, "expected authority.pem in .*, found none"),
    ],
)
def test_nobody_is_added_with_a_key_that_is_not_the_authoritys(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = keyring(tmp_path / "certs", "0")
    spoil(folder)
    with pytest.raises(UserError, match=said):
        add_member(folder, "1")
    assert not list(folder.glob("1.*"))


@pytest.mark.parametrize("days", [10_000_000, 10**12])
def test_a_certificate_ends_before_time_does(tmp_path: Path, days: int) -> None:
    folder = keyring(tmp_path / "certs", "")
    with pytest.raises(UserError, match=f"before the year 10000, got {days}"):
        add_member(folder, "0", days)


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_group_has_a_name_that_its_settings_take(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="a group's name with letters and none of"):
        new_group(tmp_path / "certs", name)


@pytest.mark.parametrize(("days", "whose"), [(-10, "authority"), (366, "0"), (4000, "authority")])
def test_a_certificate_whose_time_is_not_now_is_named(tmp_path: Path, days: int, whose: str) -> None:
    folder = keyring(tmp_path / "certs", "0")
    check_own(folder, "0")
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    with pytest.raises(UserError, match=rf"expected {whose}.pem in .* to be valid now, got one from \d+-"):
        check_own(folder, "0", at)


def test_a_certificate_of_another_authority_is_named(tmp_path: Path) -> None:
    folder, other = keyring(tmp_path / "certs", "0"), keyring(tmp_path / "other", "0")
    shutil.copy(other / AUTHORITY, folder / AUTHORITY)
    with pytest.raises(UserError, match=r"expected 0.pem in .* to be signed by authority.pem beside it"):
        check_own(folder, "0")


def test_an_address_that_cannot_be_listened_on_is_named(tmp_path: Path) -> None:
    certs = keyring(tmp_path / "certs", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"at tcp/{address}, got .*in use .*'; give --listen"):
            opened(configuration(Link(listen=[address]), "0", "test", 10.0))
        link = Link(listen=[address], certificates=certs)
        with pytest.raises(UserError, match=rf"at tls/{address}, got .* certificates in {certs}"):
            opened(configuration(link, "0", "test", 10.0))
        preset = tmp_path / "small.toml"
        preset.write_text(PRESET)
        with pytest.raises(UserError, match=f"at tcp/{address}"):
            route(str(preset), {}, Link(listen=[address]))


@pytest.mark.parametrize(
    "link",
    [
        {"connect": ["192.0.2.1:7447"]},
        {"listen": ["0.0.0.0:7447"]},
        {"connect": ["no port"]},
        {"outbound": True},
    ],
)
def test_other_machines_need_certificates(link: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Link(**link)  # type: ignore[arg-type]
    if "connect" in link and link["connect"] != ["no port"]:
        Link(**link, insecure=True)  # type: ignore[arg-type]


def test_participants_have_names_or_numbers() -> None:
    assert number_of("2", [], 3) == 2
    assert number_of("b", ["a", "b"], 2) == 1
    with pytest.raises(UserError, match="out of a, b"):
        number_of("c", ["a", "b"], 2)


@pytest.mark.slow
@pytest.mark.processes
def test_mutual_tls(nursery: Nursery, tmp_path: Path, replay: Replay) -> None:
    certs = keyring(tmp_path / "certs")
    with Group(nursery, tmp_path / "run", rounds=3) as group:
        for n in range(4):
            group.start(n, certificates=str(certs))
        group.finished()
        want = replay.model([[0, 1, 2, 3]] * 3)
        assert all(torch.equal(group.model(1)[name], value) for name, value in want.items())


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("kind", ["another authority", "not on the list", "no certificate"])
def test_others_are_refused_and_the_rounds_go_on(nursery: Nursery, tmp_path: Path, kind: str) -> None:
    certs = keyring(tmp_path / "certs", "012")
    rounds = {"rounds": 30, "peers.start": 3}
    with Group(nursery, tmp_path / "run", **rounds) as group:
        bad = None if kind == "no certificate" else str(intruder(tmp_path / "bad", kind, certs))
        group.start(3, certificates=bad)
        for n in range(3):
            group.start(n, certificates=str(certs))
        group.finished([0, 1, 2])
        assert group.history(0) == [[0, 1, 2]] * 30
        assert "going on" not in group.text(3)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ("factor", "reason"), [(float("nan"), "not finite"), (1e4, "times as large as the others'")]
)
def test_a_bad_contribution_is_left_out_by_name(
    nursery: Nursery, tmp_path: Path, replay: Replay, factor: float, reason: str
) -> None:
    with Group(nursery, tmp_path, rounds=3) as group:
        for n in range(4):
            group.start(n, factor=factor if n == 2 else None)
        group.finished()
        assert group.history(0) == [[0, 1, 3]] * 3
        assert all(list(left) == [2] and reason in left[2] for left in group.left(0))
        want = replay.model([[0, 1, 3]] * 3)
        assert all(torch.equal(group.model(0)[name], value) for name, value in want.items())
