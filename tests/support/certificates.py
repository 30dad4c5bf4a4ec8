"""Certificates for TLS on loopback, made by openssl."""

from __future__ import annotations

import base64
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """Two authorities, `ca` and `other`, and the certificates signed by `ca`, as PEM files."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name

    def data(self, name: str) -> str:
        return base64.b64encode((self.directory / name).read_bytes()).decode()

    def server_context(self, *, asks: bool = False, name: str = "server") -> ssl.SSLContext:
        """Return a server's TLS context; with `asks`, it requires a client certificate of `ca`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        if asks:
            context.load_verify_locations(self.path("ca.crt"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(directory: Path) -> Certificates:
    """Create certificates for 127.0.0.1 and `kubernetes`; the `expired` one ended in 2020."""
    openssl = shutil.which("openssl")
    assert openssl, "apt install openssl"

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other"):
        run("req", "-x509", *key, "-subj", f"/CN={authority}", "-days", "30",
            "-keyout", f"{authority}.key", "-out", f"{authority}.crt")  # fmt: skip
    for name in ("server", "client"):
        run("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
            "-addext", "subjectAltName=IP:127.0.0.1,DNS:kubernetes")  # fmt: skip
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "20", "-copy_extensions", "copy",
            "-out", f"{name}.crt")  # fmt: skip
    (directory / "index.txt").write_text("")
    (directory / "serial").write_text("01\n")
    (directory / "ca.cnf").write_text(
        "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n"
        "default_md = sha256\npolicy = p\ncopy_extensions = copy\n[p]\ncommonName = supplied\n"
    )
    run("req", *key, "-subj", "/CN=expired", "-keyout", "expired.key", "-out", "expired.csr",
        "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
    run("ca", "-batch", "-config", "ca.cnf", "-in", "expired.csr", "-cert", "ca.crt",
        "-keyfile", "ca.key", "-startdate", "20200101000000Z", "-enddate", "20200102000000Z",
        "-out", "expired.crt")  # fmt: skip
    return Certificates(directory)
