"""Certificates with their keys, as PEM (RFC 7468, RFC 5280).

certificate and chain ┐
                      ├─► bundle: validated, and one PEM file as HAProxy loads it
private key           ┘

`cryptography` takes 8 MB of memory: modules that may need no certificate import this one only
where they read one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from fc_frontend.certificates.bundle import Bundle, NotUsable, PemFault
from fc_frontend.certificates.served import Certificate

MAX_BYTES = 64 * 1024
"""The maximum size of a bundle.  A larger one is not a certificate for a website."""
MAX_CHAIN = 10
"""The maximum number of certificates in a bundle."""
MAX_NAMES = 1000
"""The maximum number of DNS names of a certificate; public authorities sign 100."""
_MIN_RSA_BITS = 2048
"""OpenSSL rejects less at security level 2, the default of Debian."""
_MAX_RSA_BITS = 16_384
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""The curves that browsers accept."""
_WEAK_DIGESTS = (hashes.MD5, hashes.SHA1)
_BLOCK = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[ \t]*\r?\n(?:[^-]|-(?!----))*-----END \1-----", re.ASCII
)
_DNS_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_-]+)*")
_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm, InternalError, x509.DuplicateExtension,
           x509.InvalidVersion, x509.UnsupportedGeneralNameType, OverflowError)  # fmt: skip
"""Exceptions of `cryptography` for bytes that are not a certificate or key."""


def bundle(chain: bytes, key: bytes | None = None) -> Bundle:
    """Return the bundle of the PEM texts `chain` and `key`; without `key`, `chain` contains it.

    The first certificate of `chain` is the site's, and each further one has signed the previous
    one. Raises `NotUsable`.
    """
    if len(chain) + len(key or b"") > 4 * MAX_BYTES:
        raise _too_large()
    with _as_damaged():
        certificates = _certificates(chain)
        private = _private_key(chain if key is None else key)
        public = private.public_key()
        _require_match(certificates, public)
        _require_strength(certificates, public)
        _require_order(certificates)
        found = _described(certificates[0], public)
    pem = b"".join(
        [
            *(each.public_bytes(Encoding.PEM) for each in certificates),
            private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        ]
    )
    if len(pem) > MAX_BYTES:
        raise _too_large()
    return Bundle(pem, found)


def certificate_in(pem: bytes) -> Certificate | None:
    """Return the first certificate in a PEM text; None if there is none that can be read."""
    try:
        with _as_damaged():
            first = _certificates(pem)[0]
            return _described(first, first.public_key(), may_be_nameless=True)
    except NotUsable:
        return None


def not_after(pem: bytes) -> float | None:
    """Return the expiry of the first certificate in `pem`, in Unix time; None if unreadable."""
    found = certificate_in(pem)
    return found.not_after if found else None


def subject_names(der: bytes) -> frozenset[str] | None:
    """Return the DNS names and addresses in a certificate (RFC 5280, 4.2.1.6).

    None if it cannot be read.
    """
    try:
        with _as_damaged():
            extensions = x509.load_der_x509_certificate(der).extensions
            found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            addresses = map(str, found.get_values_for_type(x509.IPAddress))
            return frozenset((*found.get_values_for_type(x509.DNSName), *addresses))
    except x509.ExtensionNotFound:
        return frozenset()
    except NotUsable:
        return None


def is_for_key(pem: bytes, key: bytes) -> bool:
    """Return whether the first certificate in `pem` belongs to the private key in `key`."""
    try:
        with _as_damaged():
            public = _private_key(key).public_key()
            return _same(_certificates(pem)[0].public_key(), public)
    except NotUsable:
        return False


def has_key(pem: bytes) -> bool:
    """Return whether a PEM text contains a private key."""
    return any(kind.endswith(b"PRIVATE KEY") for kind, _ in _blocks(pem))


def self_signed(name: str) -> Bundle:
    """Return a new self-signed certificate, valid for ten years.

    HAProxy needs a default certificate to start, before the actual one is issued.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC).replace(microsecond=0)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now.replace(year=now.year + 10, day=min(now.day, 28)))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(private, hashes.SHA256())
    )
    key = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return bundle(signed.public_bytes(Encoding.PEM), key)


def _blocks(pem: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the label and text of each PEM block."""
    for match in _BLOCK.finditer(pem):
        yield match[1], match[0] + b"\n"


def _certificates(pem: bytes) -> list[x509.Certificate]:
    texts = [text for kind, text in _blocks(pem) if kind in (b"CERTIFICATE", b"X509 CERTIFICATE")]
    if not texts:
        raise NotUsable(
            PemFault.NO_CERTIFICATE,
            "has no certificate in PEM form",
            "give the file with the chain",
        )
    if len(texts) > MAX_CHAIN:
        raise NotUsable(
            PemFault.TOO_LARGE,
            f"has a chain of more than {MAX_CHAIN}",
            "leave the others out",
        )
    return [x509.load_pem_x509_certificate(text) for text in texts]


def _private_key(pem: bytes) -> PrivateKeyTypes:
    keys = [(kind, text) for kind, text in _blocks(pem) if kind.endswith(b"PRIVATE KEY")]
    if not keys:
        raise NotUsable(PemFault.NO_KEY, "has no private key", "put its key beside it")
    if len(keys) > 1:
        raise NotUsable(PemFault.SEVERAL_KEYS, "has several private keys", "keep the one it needs")
    kind, text = keys[0]
    if kind.startswith(b"ENCRYPTED") or b"\nProc-Type: 4,ENCRYPTED" in text:
        raise NotUsable(
            PemFault.ENCRYPTED,
            "has a key with a passphrase",
            "store the key without it (`openssl pkey`)",
        )
    # HAProxy validates the key as well; a primality test of an RSA key takes 50 ms.
    return load_pem_private_key(text, None, unsafe_skip_rsa_key_validation=True)


def _same(one: PublicKeyTypes, other: PublicKeyTypes) -> bool:
    encoded = [
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in (one, other)
    ]
    return encoded[0] == encoded[1]


def _require_match(certificates: Sequence[x509.Certificate], key: PublicKeyTypes) -> None:
    matching = [_same(each.public_key(), key) for each in certificates]
    if matching[0]:
        return
    if any(matching):
        raise NotUsable(
            PemFault.ORDER,
            "does not come first in its file",
            "put the site's certificate first, then those that signed it",
        )
    raise NotUsable(
        PemFault.MISMATCH,
        "and its private key do not belong together",
        "give the key that it was issued for",
    )


def _require_order(certificates: Sequence[x509.Certificate]) -> None:
    """Raise unless each certificate is signed by the next one (RFC 8446, 4.4.2)."""
    for place, (one, signer) in enumerate(pairwise(certificates), 2):
        try:
            one.verify_directly_issued_by(signer)
        except (*_ERRORS, InvalidSignature):
            raise NotUsable(
                PemFault.ORDER,
                f"has a chain that is out of order: number {place} did not sign the one before",
                "give the site's certificate, then each one that signed the one before",
            ) from None


def _require_strength(certificates: Sequence[x509.Certificate], key: PublicKeyTypes) -> None:
    """Raise for keys and digests that OpenSSL rejects at security level 2, or browsers reject."""
    if isinstance(key, rsa.RSAPublicKey):
        is_strong = _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS
    elif isinstance(key, ec.EllipticCurvePublicKey):
        is_strong = key.curve.name in _CURVES
    else:
        is_strong = isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
    if not is_strong:
        raise NotUsable(
            PemFault.WEAK,
            f"has a key that OpenSSL or browsers refuse ({_algorithm(key)})",
            f"use RSA of {_MIN_RSA_BITS} bits or more, or EC P-256",
        )
    for each in certificates:
        digest = each.signature_hash_algorithm
        if isinstance(digest, _WEAK_DIGESTS) and each.subject != each.issuer:
            raise NotUsable(
                PemFault.WEAK,
                f"is signed with {digest.name}",
                "have it issued with SHA-256",
            )


def _described(
    certificate: x509.Certificate, key: PublicKeyTypes, *, may_be_nameless: bool = False
) -> Certificate:
    names = _names(certificate)
    if not names and not may_be_nameless:
        raise NotUsable(PemFault.NO_NAME, "has no DNS name", "have it issued for a host name")
    if len(names) > MAX_NAMES:
        raise NotUsable(PemFault.TOO_LARGE, f"has more than {MAX_NAMES} names", "use several")
    return Certificate(
        names=names,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        serial=f"{certificate.serial_number:X}",
        fingerprint=certificate.fingerprint(hashes.SHA1()).hex().upper(),  # noqa: S303 - no secret
        algorithm=_algorithm(key),
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names; without any, the common name, like HAProxy."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        found = []
    if not found:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = [str(each.value) for each in common]
    names = (name.lower().removesuffix(".") for name in found)
    return tuple(sorted({name for name in names if _DNS_NAME.fullmatch(name)}))


def _algorithm(key: PublicKeyTypes) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return type(key).__name__.removeprefix("_").removesuffix("PublicKey")


def _too_large() -> NotUsable:
    return NotUsable(
        PemFault.TOO_LARGE,
        f"and its chain are larger than {MAX_BYTES} bytes",
        "leave out what is not in the chain",
    )


@contextmanager
def _as_damaged() -> Iterator[None]:
    """Raise `NotUsable` for errors of `cryptography`."""
    try:
        with warnings.catch_warnings():
            # Warnings about violations of RFC 5280: HAProxy may accept such certificates.
            warnings.simplefilter("ignore")
            yield
    except NotUsable:
        raise
    except _ERRORS:
        raise NotUsable(
            PemFault.DAMAGED,
            "or its key cannot be read",
            "see `openssl x509 -in FILE -text`",
        ) from None
