"""Certificates for host names, issued by an authority with an intermediate certificate."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from itertools import count
from pathlib import Path


@dataclass(frozen=True)
class Issued:
    """The certificate of a site, as PEM texts."""

    leaf: bytes
    chain: bytes
    """The certificate, followed by its issuer's."""
    key: bytes


class Authority:
    """A root and an intermediate certificate in `directory`, made by openssl."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count(1)
        self.root_file = directory / "root.crt"
        """The root certificate, which clients trust."""
        extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        (directory / "ca.ext").write_text(extensions)
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=Test root", "-days", "3650", "-keyout", "root.key", "-out", "root.crt",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        self._request("middle", "/CN=Test intermediate", "prime256v1")
        self._openssl(
            "x509", "-req", "-in", "middle.csr", "-CA", "root.crt", "-CAkey", "root.key",
            "-set_serial", "2", "-days", "3650", "-extfile", "ca.ext", "-out", "middle.crt",
        )  # fmt: skip
        self.intermediate = (directory / "middle.crt").read_bytes()

    def issue(
        self,
        *names: str,
        key: str = "prime256v1",
        digest: str = "sha256",
        common_name: str = "site",
        ended: bool = False,
        extra: str = "",
        days: int = 90,
    ) -> Issued:
        """Issue a certificate with a new key for `names`, without names if they are empty.

        `key` is rsa:BITS, ed25519 or a curve.  `extra` contains further lines for openssl.
        """
        number = next(self._numbers)
        stem = f"site{number}"
        self._request(stem, f"/CN={common_name}", key)
        listed = ",".join(f"DNS:{name}" for name in names if name)
        alternative = f"subjectAltName={listed}\n" if listed else ""
        text = f"basicConstraints=CA:FALSE\n{alternative}{extra}"
        (self._directory / f"{stem}.ext").write_text(text)
        period = ["-days", str(days)]
        if ended:
            period = ["-not_before", "20200101000000Z", "-not_after", "20200201000000Z"]
        self._sign(stem, number, digest, period)
        leaf = (self._directory / f"{stem}.crt").read_bytes()
        private = (self._directory / f"{stem}.key").read_bytes()
        return Issued(leaf, leaf + self.intermediate, private)

    def _sign(self, stem: str, number: int, digest: str, period: list[str]) -> None:
        if period[0] == "-days":
            self._openssl(
                "x509", "-req", f"-{digest}", "-in", f"{stem}.csr", "-CA", "middle.crt",
                "-CAkey", "middle.key", "-set_serial", str(0xABC000 + number), *period,
                "-extfile", f"{stem}.ext", "-out", f"{stem}.crt",
            )  # fmt: skip
            return
        # openssl 3.0 supports a start time only with `ca`.
        directory = self._directory
        (directory / "index.txt").write_text("")
        (directory / "serial").write_text(f"{0xDE0000 + number:X}\n")
        (directory / "ca.cnf").write_text(
            "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n"
            "default_md = sha256\npolicy = p\n[p]\ncommonName = supplied\n"
        )
        self._openssl(
            "ca", "-batch", "-notext", "-config", "ca.cnf", "-in", f"{stem}.csr", "-cert",
            "middle.crt", "-keyfile", "middle.key", "-startdate", period[1], "-enddate", period[3],
            "-extfile", f"{stem}.ext", "-out", f"{stem}.crt",
        )  # fmt: skip

    def _request(self, stem: str, subject: str, key: str) -> None:
        if ":" in key or key == "ed25519":
            options = ["-newkey", key]
        else:
            options = ["-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{key}"]
        self._openssl("req", *options, "-nodes", "-subj", subject, "-keyout", f"{stem}.key",
                      "-out", f"{stem}.csr")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=self._directory, check=True, capture_output=True)
