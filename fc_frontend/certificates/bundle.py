"""A certificate with its key, in the form that HAProxy loads, and reasons to reject others."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.certificates.served import Certificate


class PemFault(StrEnum):
    """Why a certificate cannot be used."""

    NO_CERTIFICATE = "no-certificate"
    NO_KEY = "no-key"
    SEVERAL_KEYS = "several-keys"
    ENCRYPTED = "encrypted"
    DAMAGED = "damaged"
    MISMATCH = "mismatch"
    """The key belongs to another certificate, as while the two files are being replaced."""
    ORDER = "order"
    WEAK = "weak"
    NO_NAME = "no-name"
    TOO_LARGE = "too-large"


WAITING = frozenset(
    (
        PemFault.NO_CERTIFICATE,
        PemFault.NO_KEY,
        PemFault.DAMAGED,
        PemFault.MISMATCH,
    )
)
"""Faults that occur while a client replaces the files one by one."""


class NotUsable(ValueError):
    """A certificate that is not loaded into HAProxy.  The message continues "the certificate …"."""

    def __init__(self, fault: PemFault, message: str, remedy: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Bundle:
    """A certificate with its chain and private key, as one PEM text without blank lines."""

    pem: bytes
    certificate: Certificate

    def __repr__(self) -> str:
        # The key must not appear in a log.
        return f"Bundle({self.certificate!r})"
