"""The content of named files: a change causes a reload, and content that HAProxy refuses waits."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.haproxy.contents import Contents
from fc_frontend.render.file_marks import changed_files, digests_in
from tests.support.frontend import Frontend


def certificate(directory: Path, name: str, serial: int) -> tuple[str, str]:
    """Return a self-signed certificate with this serial number, and its key."""
    key, cert = directory / f".{name}.key", directory / f".{name}.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "30", "-subj", f"/CN={name}", "-set_serial", str(serial)),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    texts = cert.read_text(), key.read_text()
    cert.unlink()
    key.unlink()
    return texts


def served(frontend: Frontend, port: int) -> int:
    """Return the serial number of the served certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((frontend.host, port), timeout=5) as connection,
        context.wrap_socket(connection) as secured,
    ):
        found = secured.getpeercert(binary_form=True)
    assert found
    text = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-serial"],
        input=found,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return int(text.strip().removeprefix("serial="), 16)


@pytest.fixture
def frontend(either_binary: str, tmp_path: Path) -> Iterator[Frontend]:
    """Yield a frontend with a service that terminates TLS with `tls/site.pem`."""
    with Frontend(either_binary) as made:
        made.scale("shop", 2)
        tls = made.directory / "tls"
        tls.mkdir(mode=0o755)
        (tls / "site.pem").write_text("".join(certificate(tmp_path, "site", 1)))
        made.settings["services"]["shop"] = made.service(
            "shop", 8443, mode="http", bind_options=f"ssl crt {tls / 'site.pem'}"
        )
        made.start()
        made.until(lambda: served(made, 8443) == 1)
        yield made


def test_a_renewed_certificate_is_served(frontend: Frontend, tmp_path: Path) -> None:
    new = frontend.directory / "tls" / ".new"
    new.write_text("".join(certificate(tmp_path, "site", 2)))
    new.rename(frontend.directory / "tls" / "site.pem")
    frontend.until(lambda: served(frontend, 8443) == 2)
    frontend.until(lambda: len(frontend.events("config-reloaded")) == 1)
    (event,) = frontend.events("config-reloaded")
    assert "file-changed" in event
    assert "site.pem" in event
    assert frontend.ready()


def test_commands_see_that_a_file_has_changed(frontend: Frontend, tmp_path: Path) -> None:
    frontend.stop_daemon()
    assert frontend.run("diff").returncode == 0
    (frontend.directory / "tls" / "site.pem").write_text("".join(certificate(tmp_path, "site", 2)))
    (change,) = json.loads(frontend.run("diff", "--json", check=False).stdout)["changes"]
    assert (change["name"], change["effect"]) == ("shop", "reload")
    assert change["because"].startswith("file-changed ")
    assert json.loads(frontend.run("apply", "--json").stdout)["outcome"] == "reloaded"
    assert served(frontend, 8443) == 2
    assert frontend.run("diff").returncode == 0


def test_a_pair_that_does_not_match_waits(frontend: Frontend, tmp_path: Path) -> None:
    """certbot writes the key and the certificate one after the other."""
    site = frontend.directory / "tls" / "site.pem"
    key = frontend.directory / "tls" / "site.pem.key"
    cert, private = certificate(tmp_path, "site", 3)
    site.write_text(cert)
    key.write_text(private)
    frontend.until(lambda: served(frontend, 8443) == 3)
    cert, private = certificate(tmp_path, "site", 4)
    key.write_text(private)
    frontend.until(lambda: frontend.status()["withheld"])
    assert served(frontend, 8443) == 3
    site.write_text(cert)
    frontend.until(lambda: served(frontend, 8443) == 4)
    frontend.until(lambda: not frontend.status()["withheld"])


def test_a_new_certificate_in_a_directory_is_served(frontend: Frontend, tmp_path: Path) -> None:
    tls = frontend.directory / "tls"
    frontend.settings["services"]["shop"]["bind_options"] = f"ssl crt {tls}"
    frontend.write()
    frontend.until(lambda: len(frontend.events("config-reloaded")) == 1 and frontend.ready())
    (tls / "other.pem").write_text("".join(certificate(tmp_path, "other", 7)))
    frontend.until(lambda: len(frontend.events("config-reloaded")) == 2)
    assert "other.pem" in frontend.haproxy_cfg.read_text()


def test_a_list_of_addresses_that_changes_is_loaded(frontend: Frontend) -> None:
    allowed = frontend.directory / "allowed.lst"
    allowed.write_text("192.0.2.1\n")
    frontend.drop(
        "edge.cfg",
        f"frontend edge\n    mode http\n    bind {frontend.host}:8095\n"
        f"    http-request return status 200 if {{ src -f {allowed} }}\n"
        "    http-request return status 403\n",
    )
    frontend.until(lambda: frontend.get("/", 8095)[0] == 403)
    allowed.write_text("192.0.2.1\n127.0.0.0/8\n")
    frontend.until(lambda: frontend.get("/", 8095)[0] == 200)
    frontend.until(lambda: "file-changed" in frontend.events("config-reloaded")[-1])


def test_a_section_has_digests_of_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    contents = Contents()
    plain = "listen shop\n    bind :80"
    assert contents.marked(plain) == plain
    (tmp_path / "list").write_text("a\n")
    text = f"listen shop\n    acl a src -f {tmp_path}/list"
    first = contents.marked(text)
    assert first.startswith(text)
    assert list(digests_in(first)) == [f"{tmp_path}/list"]
    assert not contents.has_changed()
    (tmp_path / "list").write_text("b\n")
    assert contents.has_changed()
    second = contents.marked(text)
    assert changed_files(first, second) == (f"{tmp_path}/list",)
    (tmp_path / "list").unlink()
    assert digests_in(contents.marked(text)) == {f"{tmp_path}/list": "missing"}
    assert not contents.has_changed()


def test_relative_names_belong_to_the_directories_of_global(tmp_path: Path) -> None:
    (tmp_path / "site.pem").write_text("x")
    marked = Contents().marked(
        "listen a\n  bind :1 ssl crt site.pem", f"global\ncrt-base {tmp_path}"
    )
    assert f"{tmp_path}/site.pem" in digests_in(marked)
