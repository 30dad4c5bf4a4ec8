"""The end of a certificate's validity, compared with openssl's output."""

from __future__ import annotations

import base64
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.certificates.pem import not_after
from fc_frontend.kubernetes.access import Credential
from tests.support.api_cluster import token_until
from tests.support.certificates import Certificates


def of_openssl(path: Path) -> float:
    done = subprocess.run(
        ["openssl", "x509", "-in", str(path), "-noout", "-enddate"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(ssl.cert_time_to_seconds(done.stdout.strip().removeprefix("notAfter=")))


@pytest.mark.parametrize("name", ["ca", "server", "client", "expired"])
def test_the_end_is_that_of_openssl(certificates: Certificates, name: str) -> None:
    path = certificates.path(f"{name}.crt")
    assert not_after(path.read_bytes()) == of_openssl(path)


def test_a_certificate_that_ends_after_2049_has_another_form_of_time(tmp_path: Path) -> None:
    path = tmp_path / "late.crt"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-subj", "/CN=late", "-days", "18250",
         "-keyout", str(tmp_path / "late.key"), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    assert not_after(path.read_bytes()) == of_openssl(path)


def test_the_first_of_several_certificates_counts(certificates: Certificates) -> None:
    first, second = (certificates.path(f"{name}.crt").read_bytes() for name in ("expired", "ca"))
    assert not_after(b"a comment\n" + first + second) == not_after(first) != not_after(second)


@given(st.binary(), st.integers(0, 200), st.integers(0, 255))
def test_any_bytes_are_a_certificate_or_none(
    certificates: Certificates, data: bytes, at: int, byte: int
) -> None:
    assert not_after(data) is None
    for damaged in (data, _with_byte(certificates, at, byte)):
        pem = (
            b"-----BEGIN CERTIFICATE-----\n"
            + base64.encodebytes(damaged)
            + b"-----END CERTIFICATE-----\n"
        )
        assert isinstance(not_after(pem), float | None)


def _with_byte(certificates: Certificates, at: int, byte: int) -> bytes:
    der = bytearray(ssl.PEM_cert_to_DER_cert(certificates.path("client.crt").read_text()))
    der[at] = byte
    return bytes(der)


def test_a_credential_lasts_until_the_first_of_its_parts_expires(
    certificates: Certificates,
) -> None:
    pem = certificates.path("client.crt").read_bytes()
    ends = not_after(pem)
    assert ends is not None
    assert Credential("opaque", None, None).until is None
    assert Credential(None, pem, b"").until == ends
    assert Credential(token_until(int(ends) - 1), pem, b"").until == ends - 1
    assert Credential(token_until(int(ends) + 9), pem, b"", expires=ends + 5).until == ends
