"""Certificate renewal while clients connect, by the number of certificates of a frontend.

Measures the time from the rename of a renewed certificate until a client receives it, through the
real daemon, while others perform handshakes; and the time that `check`, `certificates sync` and a
start of HAProxy take.  No renewal may cause a reload, a check of HAProxy or a failed handshake.
"""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import time
from collections import Counter
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.frontend import Frontend

PORT = 8443
_HANDSHAKES = 1000
_PAUSE = 0.1
"""Seconds between two renewals."""


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each HAProxy and number of certificates."""
    swaps = 10 if options.quick else 50
    sizes = options.services_or((1, 1000, 5000), quick=(1, 200))
    return [_row(version, count, swaps) for version in options.versions for count in sizes]


class Issuer:
    """An authority that issues certificates quickly: there are thousands."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bench root")])
        signed = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.root = _pem(signed.sign(self._key, hashes.SHA256()))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=90))
        )

    def issue(self, host: str) -> tuple[str, bytes]:
        """Return the serial number in the form that clients see, and the combined PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = (
            self._builder(subject, key)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        digits = f"{signed.serial_number:X}"
        return digits.zfill(len(digits) + len(digits) % 2), _pem(signed) + private


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _row(version: str, count: int, swaps: int) -> dict[str, object]:
    with Frontend(binary_of(version)) as frontend:
        issuer = Issuer()
        live = frontend.directory / "live"
        live.mkdir()
        for number in range(count):
            (live / f"host{number}.pem").write_bytes(issuer.issue(f"host{number}.test")[1])
        root = frontend.directory / "root.crt"
        root.write_bytes(issuer.root)
        frontend.settings["frontends"] = {
            "web": {"binds": f"{frontend.host}:{PORT}", "tls": {"certificates": str(live)}}
        }
        frontend.settings["services"]["site"] = {
            "frontend": "web",
            "hosts": ["host0.test"],
            "pod_port": 8080,
        }
        frontend.scale("site", 1)
        began = time.monotonic()
        frontend.start()
        context = ssl.create_default_context(cafile=str(root))
        frontend.until(lambda: _serial(frontend, context))
        started = time.monotonic() - began
        # The daemon has read all certificates once.
        frontend.until(lambda: len(frontend.status()["certificates"]) == count)
        reloads, checks = _counted(frontend)
        seconds, outcome = _renew(frontend, issuer, live, context, swaps)
        after = _counted(frontend)
        check = _seconds(frontend, "check")
        sync = _seconds(frontend, "certificates", "sync")
    seconds.sort()
    return {
        "haproxy": version,
        "certificates": count,
        "start s": f"{started:.1f}",
        "served p50 s": f"{seconds[len(seconds) // 2]:.2f}",
        "served max s": f"{seconds[-1]:.2f}",
        "swaps": swaps,
        "handshakes": outcome["good"],
        "failed": sum(outcome.values()) - outcome["good"],
        "reloads": after[0] - reloads,
        "checks": after[1] - checks,
        "check s": f"{check:.1f}",
        "sync s": f"{sync:.1f}",
    }


def _counted(frontend: Frontend) -> tuple[int, int]:
    """Return the reloads and checks of HAProxy so far."""
    seen = frontend.metrics()
    return int(seen.sum("fc_frontend_reloads_total")), int(seen.sum("fc_frontend_checks_total"))


def _seconds(frontend: Frontend, *command: str) -> float:
    began = time.monotonic()
    frontend.run(*command)
    return time.monotonic() - began


def _serial(frontend: Frontend, context: ssl.SSLContext) -> str:
    """Return the serial number of the certificate that a verifying client receives."""
    with (
        socket.create_connection((frontend.host, PORT), 10) as connection,
        context.wrap_socket(connection, server_hostname="host0.test") as tls,
    ):
        found = tls.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def _renew(
    frontend: Frontend, issuer: Issuer, live: Path, context: ssl.SSLContext, swaps: int
) -> tuple[list[float], Counter[str]]:
    """Renew one certificate repeatedly; return the seconds of each renewal, and the handshakes."""
    outcome: Counter[str] = Counter()
    is_over = threading.Event()

    def connect() -> None:
        while not is_over.is_set() or outcome["good"] < _HANDSHAKES:
            try:
                _serial(frontend, context)
                outcome["good"] += 1
            except OSError as exc:
                outcome[type(exc).__name__] += 1

    thread = threading.Thread(target=connect)
    thread.start()
    seconds = []
    try:
        for _ in range(swaps):
            serial, pem = issuer.issue("host0.test")
            new = live / ".host0.new"
            new.write_bytes(pem)
            began = time.monotonic()
            new.rename(live / "host0.pem")
            while _serial(frontend, context) != serial:
                assert time.monotonic() - began < 120, frontend.log_text()[-2000:]
                time.sleep(0.01)
            seconds.append(time.monotonic() - began)
            time.sleep(_PAUSE)
    finally:
        is_over.set()
        thread.join()
    return seconds, outcome
