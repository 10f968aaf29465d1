"""The certificates of a group: its own authority, and one certificate per participant."""

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msfusion.errors import UserError, optional
from msfusion.peers.settings import check_name

AUTHORITY = "authority.pem"
AUTHORITY_KEY = "authority.key"
DAYS = 365

_OF_AUTHORITY = " authority"
_LONGEST = 64  # bytes of a name on a certificate (RFC 5280, ub-common-name)


def new_group(folder: Path, group: str) -> None:
    """Make a group's authority in a new folder; its key stays with whoever adds participants."""
    if (folder / AUTHORITY).exists():
        raise UserError(f"expected a folder without an authority, got {folder}, which has one: name another")
    check_name("a group's name", group)
    _check_length("a group's name", group, _LONGEST - len(_OF_AUTHORITY))
    x509, ec, _, _ = _cryptography()
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = _called(f"{group}{_OF_AUTHORITY}", group)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, secret.public_key(), 10 * DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    _write(folder, AUTHORITY, certificate, secret, secret)


def add_member(folder: Path, name: str, days: int = DAYS) -> None:
    """Make the certificate and the key of a participant, or of a router; it is on the access list from then
    on, which is the names that have a certificate in the folder."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name in ("authority", ".", ".."):
        raise UserError(f"expected a name of letters, digits, '-', '_' and '.', got {name!r}")
    _check_length("a name", name, _LONGEST)
    if (folder / f"{name}.pem").exists():
        raise UserError(f"expected a name without a certificate in {folder}, got {name!r}, which has one")
    for own in (AUTHORITY_KEY, AUTHORITY):
        if not (folder / own).exists():
            raise UserError(f"expected {own} in {folder}, found none: msfusion certs new GROUP")
    x509, ec, _, _ = _cryptography()
    authority, signer = _pair(folder, AUTHORITY, AUTHORITY_KEY)
    secret = ec.generate_private_key(ec.SECP256R1())
    usage = x509.oid.ExtendedKeyUsageOID
    certificate = (
        _builder(_called(name, None), authority.subject, secret.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage.SERVER_AUTH, usage.CLIENT_AUTH]), critical=False)
    )
    if name.isascii():  # others cannot be a name of a machine, and nobody compares it with one
        alternative = x509.SubjectAlternativeName([x509.DNSName(name)])
        certificate = certificate.add_extension(alternative, critical=False)
    _write(folder, f"{name}.pem", certificate, secret, signer)


def _check_length(what: str, name: str, longest: int) -> None:
    if (size := len(name.encode())) > longest:
        raise UserError(
            f"expected {what} of at most {longest} bytes in UTF-8 for a certificate, got {size}: shorten it"
        )


def names_in(folder: Path) -> list[str]:
    """The access list: who has a certificate in the folder."""
    return sorted(path.stem for path in folder.glob("*.pem") if path.name != AUTHORITY)


def certificate(folder: Path, name: str) -> Path:
    """The certificate of a participant; raises UserError where there is none."""
    for path in (folder / AUTHORITY, folder / f"{name}.pem"):
        if not path.exists():
            raise UserError(f"expected {path.name} in {folder}, found none: make it with msfusion certs")
    return folder / f"{name}.pem"


def key(folder: Path, name: str) -> Path:
    """The private key of a participant; raises UserError where there is none."""
    path = folder / f"{name}.key"
    if not path.exists():
        raise UserError(f"expected the private key {path.name} in {folder}, found none")
    return path


def check_own(folder: Path, name: str, now: datetime.datetime | None = None) -> None:
    """Raise UserError where a certificate, its key or the authority's certificate cannot be read, they do not
    belong together, or the time of one is not now: a link that fails for it is tried again for ever."""
    x509, _, _, _ = _cryptography()
    authority = _read(folder / AUTHORITY, x509.load_pem_x509_certificate)
    own, _ = _pair(folder, f"{name}.pem", f"{name}.key")
    if not _signed_by(own, authority):
        raise UserError(
            f"expected {name}.pem in {folder} to be signed by {AUTHORITY} beside it, got one of another "
            "authority: copy both from where they were made"
        )
    now = now or datetime.datetime.now(datetime.UTC)
    _check_time(folder / AUTHORITY, authority, now, "begin a new group (msfusion certs new)")
    remedy = f"remove it and make another (msfusion certs add {name}), which everybody needs then"
    _check_time(folder / f"{name}.pem", own, now, remedy)


def _pair(folder: Path, certificate: str, key: str) -> tuple[Any, Any]:
    """A certificate and its key; raises UserError where one cannot be read, or is another's."""
    x509, _, _, serialization = _cryptography()
    own = _read(folder / certificate, x509.load_pem_x509_certificate)
    secret = _read(folder / key, lambda text: serialization.load_pem_private_key(text, password=None))
    kind = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if own.public_key().public_bytes(*kind) != secret.public_key().public_bytes(*kind):
        raise UserError(
            f"expected {key} in {folder} to be the key of {certificate}, got another's: copy both from "
            "where they were made"
        )
    return own, secret


def _signed_by(own: Any, authority: Any) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_time(path: Path, certificate: Any, now: datetime.datetime, remedy: str) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise UserError(
            f"expected {path.name} in {path.parent} to be valid now, got one from {first:%Y-%m-%d %H:%M} to "
            f"{last:%Y-%m-%d %H:%M} UTC; set this machine's clock, or {remedy}"
        )


def _read(path: Path, load: Callable[[bytes], Any]) -> Any:
    try:
        return load(path.read_bytes())
    except (ValueError, TypeError) as error:
        raise UserError(
            f"expected a PEM file without a password at {path}, got {str(error).splitlines()[0]!r}: copy it "
            "from where it was made"
        ) from error


def _builder(subject: Any, issuer: Any, public: Any, days: int) -> Any:
    x509, _, _, _ = _cryptography()
    now = datetime.datetime.now(datetime.UTC)
    try:
        end = now + datetime.timedelta(days=days)
    except OverflowError:
        raise UserError(f"expected days that end before the year 10000, got {days}: give fewer") from None
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1 if days >= 0 else 1 - days))
        .not_valid_after(end)
    )


def _called(name: str, group: str | None) -> Any:
    x509, _, _, _ = _cryptography()
    attributes = [x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)]
    if group:
        attributes.append(x509.NameAttribute(x509.oid.NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _write(folder: Path, name: str, builder: Any, secret: Any, signer: Any) -> None:
    _, _, hashes, serialization = _cryptography()
    folder.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    text = secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = (folder / name).with_suffix(".key")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(text)
    (folder / name).write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(pem))


def _cryptography() -> list[Any]:
    """x509, ec, hashes and serialization."""
    below = [f"hazmat.primitives.{name}" for name in ("asymmetric.ec", "hashes", "serialization")]
    what = "cryptography, which makes certificates"
    return [optional(f"cryptography.{name}", what, "msfusion[peers]") for name in ("x509", *below)]
