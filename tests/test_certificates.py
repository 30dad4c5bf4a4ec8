"""Certificates as bytes: parsed values compared with those of openssl, and refused input."""

from __future__ import annotations

import base64
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.certificates.bundle import NotUsable, PemFault
from fc_frontend.certificates.layouts import FilePair, key_beside, pairs_in
from fc_frontend.certificates.pem import (
    bundle,
    certificate_in,
    has_key,
    self_signed,
)
from fc_frontend.certificates.served import Served, hidden_problems
from tests.support.issued import Authority, Issued


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("issued"))


@pytest.fixture(scope="module")
def site(authority: Authority) -> Issued:
    return authority.issue("shop.example.org", "*.Shop.example.org")


def openssl(pem: bytes, *options: str) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-noout", *options], input=pem, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def fault(chain: bytes, key: bytes | None = None) -> PemFault:
    with pytest.raises(NotUsable) as caught:
        bundle(chain, key)
    assert caught.value.remedy
    return caught.value.fault


def test_a_bundle_has_chain_and_key_without_blank_lines(site: Issued, authority: Authority) -> None:
    chain = b"Bag Attributes\n\n" + site.chain.replace(b"-----END", b"-----END") + b"\n\n"
    made = bundle(chain, b"\n\n" + site.key + b"\n")
    assert b"\n\n" not in made.pem
    assert made.pem.count(b"BEGIN CERTIFICATE") == 2
    assert made.pem.index(b"PRIVATE KEY") > made.pem.rindex(b"END CERTIFICATE")
    assert bundle(made.pem) == made
    found = made.certificate
    assert found.names == ("*.shop.example.org", "shop.example.org")
    assert (
        openssl(site.chain, "-serial")
        == f"serial={found.serial:>0{len(found.serial) + len(found.serial) % 2}}"
    )
    shown = openssl(site.chain, "-fingerprint", "-sha1").partition("=")[2]
    assert shown.replace(":", "") == found.fingerprint
    assert found.not_before < found.not_after
    assert site.key.splitlines()[1] not in repr(made).encode()


@pytest.mark.parametrize(
    ("host", "is_covered"),
    [
        ("shop.example.org", True),
        ("a.shop.example.org", True),
        ("*.shop.example.org", True),
        ("a.b.shop.example.org", False),
        ("example.org", False),
        ("*.example.org", False),
        ("org", False),
    ],
)
def test_a_wildcard_stands_for_one_label(site: Issued, host: str, is_covered: bool) -> None:
    assert bundle(site.chain, site.key).certificate.covers(host) is is_covered


def test_what_is_incomplete_or_out_of_order_is_refused(site: Issued, authority: Authority) -> None:
    other = authority.issue("other.example.org")
    leaf, signer = site.leaf, authority.intermediate
    assert fault(b"") is PemFault.NO_CERTIFICATE
    assert fault(site.key) is PemFault.NO_CERTIFICATE
    assert fault(site.chain) is PemFault.NO_KEY
    assert fault(site.chain, b"") is PemFault.NO_KEY
    assert fault(site.chain, other.key) is PemFault.MISMATCH
    assert fault(signer + leaf, site.key) is PemFault.ORDER
    assert fault(leaf + other.leaf, site.key) is PemFault.ORDER
    assert fault(leaf + leaf, site.key) is PemFault.ORDER
    assert fault(site.chain, site.key + other.key) is PemFault.SEVERAL_KEYS
    assert fault(site.chain[:200] + site.chain[260:], site.key) is PemFault.DAMAGED
    assert fault(leaf + signer * 10, site.key) is PemFault.TOO_LARGE
    assert fault(site.chain + b"x" * 300_000, site.key) is PemFault.TOO_LARGE
    assert bundle(leaf, site.key).certificate.names


def test_keys_that_openssl_refuses_are_refused(authority: Authority) -> None:
    for key, digest in (("rsa:1024", "sha256"), ("rsa:2048", "sha1"), ("secp256k1", "sha256")):
        weak = authority.issue("weak.example.org", key=key, digest=digest)
        assert fault(weak.chain, weak.key) is PemFault.WEAK
    for key in ("rsa:2048", "secp384r1", "ed25519"):
        strong = authority.issue("strong.example.org", key=key)
        assert bundle(strong.chain, strong.key).certificate.algorithm


def test_a_key_with_a_passphrase_is_refused(site: Issued, tmp_path: Path) -> None:
    for form in (["pkcs8", "-topk8"], ["ec", "-aes128"]):
        options = [*form, "-passout", "pass:secret"]
        done = subprocess.run(
            ["openssl", *options], input=site.key, capture_output=True, check=True
        )
        assert fault(site.chain, done.stdout) is PemFault.ENCRYPTED


def test_a_certificate_for_no_host_is_refused(authority: Authority) -> None:
    nameless = authority.issue("", common_name="A Person")
    assert fault(nameless.chain, nameless.key) is PemFault.NO_NAME
    # HAProxy uses the common name if there is no other name.
    old = authority.issue("", common_name="old.example.org")
    assert bundle(old.chain, old.key).certificate.names == ("old.example.org",)


def test_an_expired_certificate_is_a_bundle(authority: Authority) -> None:
    old = authority.issue("old.example.org", ended=True)
    assert bundle(old.chain, old.key).certificate.not_after < 1_700_000_000


def test_a_stand_in_is_a_bundle() -> None:
    made = self_signed("default.invalid")
    assert made.certificate.names == ("default.invalid",)
    assert bundle(made.pem) == made


@given(st.data())
def test_damaged_bytes_are_refused_or_another_certificate(
    site: Issued, data: st.DataObject
) -> None:
    pem = bytearray(site.chain + site.key)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(pem) - 1))
        pem[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        made = bundle(bytes(pem))
    except NotUsable:
        return
    assert b"\n\n" not in made.pem
    assert bundle(made.pem) == made


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    text = b"-----BEGIN CERTIFICATE-----\n" + data + b"\n-----END CERTIFICATE-----\n"
    assert certificate_in(data) is None
    assert certificate_in(text) is None
    assert not has_key(data)


def test_each_layout_has_its_pairs() -> None:
    certbot = ["README", "cert.pem", "chain.pem", "fullchain.pem", "privkey.pem"]
    nixos = ["account", "cert.pem", "chain.pem", "full.pem", "fullchain.pem", "key.pem"]
    lego = [
        "a.org.crt",
        "a.org.issuer.crt",
        "a.org.json",
        "a.org.key",
        "_.b.org.crt",
        "_.b.org.key",
    ]
    assert pairs_in(certbot) == (FilePair("fullchain.pem", "privkey.pem"),)
    assert pairs_in(nixos) == (FilePair("fullchain.pem", "key.pem"),)
    assert pairs_in(["full.pem", "cert.pem"]) == (FilePair("full.pem"),)
    assert pairs_in(["..data", "tls.crt", "tls.key"]) == (FilePair("tls.crt", "tls.key"),)
    assert pairs_in(lego) == (
        FilePair("_.b.org.crt", "_.b.org.key"),
        FilePair("a.org.crt", "a.org.key"),
    )
    assert pairs_in(["b.pem", "b.key", "c.pem", ".d.pem", "e.txt"]) == (
        FilePair("b.pem", "b.key"),
        FilePair("c.pem"),
    )


def test_a_part_that_is_missing_is_awaited() -> None:
    whole = ["fullchain.pem", "privkey.pem"]
    for count in (1, 2):
        for names in itertools.combinations(whole, count):
            assert pairs_in(names) == (FilePair(*whole),)
    assert pairs_in(["tls.key"]) == (FilePair("tls.crt", "tls.key"),)
    assert key_beside("a.org.crt", ["a.org.crt", "a.org.issuer.crt"]) == "a.org.key"
    assert key_beside("a.pem", ["a.pem", "a.pem.key"]) == "a.pem.key"
    assert key_beside("a.pem", ["a.pem"]) is None


def test_of_two_certificates_for_a_name_one_is_hidden(authority: Authority) -> None:
    def served(path: str, *names: str, key: str = "prime256v1", default: bool = False) -> Served:
        issued = authority.issue(*names, key=key)
        return Served("web", path, bundle(issued.chain + issued.key).certificate, default)

    found = [
        served("/c/a.pem", "a.test", "www.a.test"),
        served("/c/old.pem", "www.a.test"),
        # Clients that cannot use one kind of key get the other certificate.
        served("/c/rsa.pem", "a.test", key="rsa:2048"),
        served("/c/default.pem", "a.test", default=True),
        served("/c/wild.pem", "*.a.test"),
    ]
    (problem,) = hidden_problems(found)
    assert problem.message == (
        "/c/old.pem: /c/a.pem is for www.a.test as well, and HAProxy serves the one that it loaded "
        "first"
    )
    assert not list(hidden_problems([found[0], replace(found[1], frontend="other")]))


def test_what_cryptography_cannot_read_is_refused(site: Issued) -> None:
    """An X.509 version that does not exist raises neither ValueError nor another common error."""
    body = base64.b64decode(b"".join(site.leaf.splitlines()[1:-1]))
    at = body.index(b"\xa0\x03\x02\x01\x02")
    damaged = base64.encodebytes(body[: at + 4] + b"\x07" + body[at + 5 :])
    pem = b"-----BEGIN CERTIFICATE-----\n" + damaged + b"-----END CERTIFICATE-----\n"
    with pytest.raises(NotUsable) as found:
        bundle(pem + site.key)
    assert found.value.fault is PemFault.DAMAGED
    assert certificate_in(pem) is None


def test_a_daemon_without_certificates_does_without_cryptography() -> None:
    """Importing cryptography takes 8 MB of memory."""
    script = "import sys, fc_frontend.daemon.service; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
