"""Certificate authorities and the certificates they sign, as PEM files with private keys at mode 0600."""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from readapt_cluster.errors import Refused
from readapt_cluster.places import private_folder

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_VALID_DAYS = 365


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """One certificate authority in `folder`; made new, or read back when it is there already."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises Refused where the `cryptography` package is missing."""
        require_cryptography()
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

        self.folder = private_folder(folder)
        self._name = name
        self.pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
        if self.pair.key.exists() and self.pair.certificate.exists():
            key = serialization.load_pem_private_key(self.pair.key.read_bytes(), password=None)
            if not isinstance(key, EllipticCurvePrivateKey):
                raise TypeError(f"{self.pair.key}: not an elliptic curve key")
            self._key: EllipticCurvePrivateKey = key
            self._certificate: x509.Certificate = x509.load_pem_x509_certificate(self.pair.certificate.read_bytes())
        else:
            self._key, self._certificate = self._create()

    def issue(self, file: str, user: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> Pair:
        """Sign a certificate for `user` (common name) in `groups` (organizations).

        With `hosts` (DNS names or addresses) it serves TLS as well. An existing file is replaced.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])
        builder = (
            _builder(_subject(user, groups), self._certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        pair = Pair(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        _save(pair, builder, signed_by=self._key, key=key)
        return pair

    def _create(self) -> "tuple[EllipticCurvePrivateKey, x509.Certificate]":
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(f"readapt-{self._name}", ())
        builder = (
            _builder(subject, subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return key, _save(self.pair, builder, signed_by=key, key=key)


def service_account_keys(folder: Path) -> Pair:
    """The RSA pair that signs service account tokens: (public key, private key). Kept if it exists."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pair = Pair(folder / "service-account.pub", folder / "service-account.key")
    if not pair.key.exists():
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        pair.certificate.write_bytes(public)
        write_secret(pair.key, _pem(key))
    return pair


def require_cryptography() -> None:
    """Raises Refused where the `cryptography` package is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise Refused(
            "The Python package `cryptography` is missing. Run the tool from the project's development "
            "environment (requirements/dev.txt), or install `cryptography`."
        ) from None


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _subject(user: str, groups: Sequence[str]) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _builder(subject: "x509.Name", issuer: "x509.Name") -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
    )


def _general_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _save(
    pair: Pair,
    builder: "x509.CertificateBuilder",
    *,
    signed_by: "EllipticCurvePrivateKey",
    key: "EllipticCurvePrivateKey",
) -> "x509.Certificate":
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key())
    certificate = builder.add_extension(authority, critical=False).sign(signed_by, hashes.SHA256())
    write_secret(pair.key, _pem(key))
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate


def _pem(key: "object") -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise TypeError(f"no private key: {key!r}")
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
