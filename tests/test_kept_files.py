"""A certificate that becomes bad costs neither its service nor anybody else."""

from __future__ import annotations

import http.client
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.config.running import (
    RawDeclaration,
    RunningDeclarations,
    dump_running,
    load_running,
)
from fc_frontend.haproxy import kept_files
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def certificate(path: Path, name: str) -> None:
    """Write a new key and a certificate for `name` that it signed itself."""
    key = path.with_suffix(".key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", f"/CN={name}", "-days", "2", "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + key.read_text())
    path.chmod(0o600)
    key.unlink()


def seen(frontend: Frontend, port: int) -> bytes:
    """The certificate that is shown on `port`; a request through it must be answered."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(frontend.host, port, timeout=10, context=context)
    try:
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        found = connection.sock.getpeercert(binary_form=True)
        assert found
        return bytes(found)
    finally:
        connection.close()


def test_a_certificate_that_is_broken_later_costs_nothing(frontend: Frontend) -> None:
    pem = frontend.directory / "shop.pem"
    certificate(pem, "shop.example")
    frontend.scale("shop", 2)
    frontend.drop(
        "shop.json", {"shop": frontend.service("shop", 8443, bind_options=f"ssl crt {pem}")}
    )
    frontend.start()
    shown = frontend.until(lambda: seen(frontend, 8443))
    for port in (9001, 9002):
        if port == 9001:
            pem.write_text("not a certificate\n")
        else:
            pem.unlink()
        frontend.drop(f"s{port}.json", {f"s{port}": frontend.service("shop", port)})
        frontend.until(lambda port=port: frontend.ask(port).startswith("shop-"))
        (held,) = frontend.until(lambda: frontend.status()["withheld"])
        assert (held["name"], held["effect"]) == ("shop", "the last good version keeps running")
        assert seen(frontend, 8443) == shown
    copies = frontend.directory / "state" / "kept"
    assert copies.stat().st_mode & 0o777 == 0o700
    assert {copy.stat().st_mode & 0o777 for copy in copies.iterdir()} == {0o600}
    # Another start of everything, with the certificate still missing.
    frontend.stop_daemon()
    frontend.end_haproxy()
    frontend.start()
    assert frontend.until(lambda: seen(frontend, 8443)) == shown
    # Once there is one again, it is taken by itself.
    certificate(pem, "new.example")
    frontend.until(lambda: not frontend.status()["withheld"], 70)
    assert seen(frontend, 8443) != shown


def test_copies_that_nothing_names_any_more_are_forgotten(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    one, two, large = tmp_path / "one.pem", tmp_path / "two.pem", tmp_path / "large.pem"
    one.write_text("1")
    two.write_text("2")
    large.write_bytes(b"x" * (kept_files.MOST_BYTES + 1))
    text = (
        f"listen a\n    bind :1 ssl crt {one}\n    server a 1.2.3.4:1 ca-file {two} crt {large}\n"
    )
    paths = kept_files.paths_in(text + f"    http-request deny if {{ src -f {tmp_path} }}\n")
    assert {str(one), str(two), str(large), str(tmp_path)} == paths
    kept = kept_files.keep(state, paths)
    assert set(kept) == {str(one), str(two)}
    assert kept_files.substitutes(state, kept) == {}
    one.write_text("other")
    two.unlink()
    found = kept_files.substitutes(state, kept)
    assert {path: Path(copy).read_text() for path, copy in found.items()} == {
        str(one): "1",
        str(two): "2",
    }
    kept_files.forget(state, kept_files.keep(state, [str(one)]))
    assert len(list((tmp_path / "state" / "kept").iterdir())) == 1


def test_paths_are_replaced_whole_and_everywhere() -> None:
    text = "bind :443 ssl crt /a/x.pem crt /a/x.pem2\nca-file /a/x.pem"
    assert kept_files.with_copies(text, {"/a/x.pem": "/kept/0"}) == (
        "bind :443 ssl crt /kept/0 crt /a/x.pem2\nca-file /kept/0"
    )


def test_digests_of_files_are_kept(tmp_path: Path) -> None:
    value = {"bind_options": "ssl crt /a/x.pem"}
    good = RunningDeclarations(
        services={"s": RawDeclaration("f", value)}, files={"/a/x.pem": "0" * 64}
    )
    (tmp_path / "running.json").write_bytes(dump_running(good))
    assert load_running(str(tmp_path / "running.json")) == good
