"""A certificate that becomes invalid affects neither its service nor any other."""

from __future__ import annotations

import http.client
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.haproxy import kept_files
from fc_frontend.syntax.files import NamedFile
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def certificate(path: Path, name: str) -> None:
    """Write a new key and a self-signed certificate for `name`."""
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
    """Return the certificate served on `port`; a request through it must be answered."""
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
    # Restart everything while the certificate is still missing.
    frontend.stop_daemon()
    frontend.end_haproxy()
    frontend.start()
    assert frontend.until(lambda: seen(frontend, 8443)) == shown
    # A new certificate is picked up without further action.
    certificate(pem, "new.example")
    frontend.until(lambda: not frontend.status()["withheld"], 70)
    assert seen(frontend, 8443) != shown


def named(text: str) -> list[NamedFile]:
    return list(kept_files.files_in(f"listen a\n{text}").values())


def copied(text: str, state: str, kept: dict[str, str]) -> list[str]:
    """Return the words of `text` that are copies, as names in the directory of copies."""
    found = kept_files.with_copies(text, state, kept)
    return [word.removeprefix(f"{state}/kept/") for word in found.split() if "/kept/" in word]


def test_copies_that_nothing_names_any_more_are_forgotten(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    one, two, large = tmp_path / "one.pem", tmp_path / "two.pem", tmp_path / "large.pem"
    one.write_text("1")
    two.write_text("2")
    large.write_bytes(b"x" * (kept_files.MOST_BYTES + 1))
    text = f"    bind :1 ssl crt {one}\n    server a 1.2.3.4:1 ca-file {two} crt {large}\n"
    text += f"    http-request deny if {{ src -f {tmp_path} }}\n"
    files = named(text)
    assert {str(one), str(two), str(large), str(tmp_path)} == {file.path for file in files}
    kept = kept_files.keep(state, files)
    assert set(kept) == {str(one), str(two)}
    one.write_text("other")
    two.unlink()
    copies = [(tmp_path / "state" / "kept" / name) for name in copied(text, state, kept)]
    assert [copy.read_text() for copy in copies] == ["1", "2"]
    kept_files.forget(state, kept_files.keep(state, named(f"    bind :1 ssl crt {one}")))
    assert len(list((tmp_path / "state" / "kept").iterdir())) == 1
    # A copy that does not exist replaces nothing.
    assert copied(text, state, kept) == []


def test_a_directory_of_certificates_becomes_a_list_of_copies(tmp_path: Path) -> None:
    state, tls = str(tmp_path / "state"), tmp_path / "tls"
    tls.mkdir()
    for name, content in {
        "b.pem": "BEGIN CERTIFICATE b",
        "b.pem.key": "BEGIN PRIVATE KEY-----",
        "a.pem": "a PRIVATE KEY-----",
        "a.pem.ocsp": "answer",
        ".hidden": "no",
    }.items():
        (tls / name).write_text(content)
    text = f"    bind :1 ssl crt {tls} alpn h2"
    kept = kept_files.keep(state, named(text))
    found = kept_files.with_copies(text, state, kept)
    assert re.fullmatch(
        rf"    bind :1 ssl crt-list {state}/kept/[0-9a-f]{{64}}\.list alpn h2", found
    )
    (name,) = kept.values()
    listed = (tmp_path / "state" / "kept" / name).read_text().splitlines()
    assert [Path(path).read_text() for path in listed] == [
        "a PRIVATE KEY-----",
        "BEGIN CERTIFICATE b\nBEGIN PRIVATE KEY-----",
    ]
    # The copies that a list names are kept as long as the list.
    kept_files.forget(state, kept)
    assert len(list((tmp_path / "state" / "kept").iterdir())) == 3
    kept_files.forget(state, {})
    assert not list((tmp_path / "state" / "kept").iterdir())


def test_a_certificate_for_each_type_of_key_becomes_a_list_of_copies(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    for kind in ("ecdsa", "rsa"):
        (tmp_path / f"site.pem.{kind}").write_text(f"{kind} PRIVATE KEY-----")
    kept = kept_files.keep(state, named(f"    bind :1 ssl crt {tmp_path}/site.pem"))
    listed = (tmp_path / "state" / "kept" / kept[f"{tmp_path}/site.pem"]).read_text().splitlines()
    assert {Path(path).read_text().split()[0] for path in listed} == {"ecdsa", "rsa"}


def test_a_crt_list_names_copies_with_its_own_options(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    (tmp_path / "a.pem").write_text("a PRIVATE KEY-----")
    (tmp_path / "list").write_text("# comment\n\na.pem [alpn h2] *.example.org !x.example.org\n")
    bases = f"global\ncrt-base {tmp_path}"
    text = "    bind :1 ssl crt-list list"
    files = list(kept_files.files_in(f"{bases}\nlisten a\n{text}").values())
    kept = kept_files.keep(state, files)
    found = kept_files.with_copies(text, state, kept, bases)
    path = Path(found.split()[-1])
    assert found == f"    bind :1 ssl crt-list {path}"
    first, *others = path.read_text().split()
    assert Path(first).read_text() == "a PRIVATE KEY-----"
    assert others == ["[alpn", "h2]", "*.example.org", "!x.example.org"]


def test_a_directory_of_ca_files_becomes_one_file(tmp_path: Path) -> None:
    state, cas = str(tmp_path / "state"), tmp_path / "cas"
    cas.mkdir()
    for name in ("one.pem", "two.crt", "README"):
        (cas / name).write_text(f"of {name}")
    kept = kept_files.keep(state, named(f"    server a 1.2.3.4:1 ssl ca-file {cas}"))
    (name,) = kept.values()
    assert (tmp_path / "state" / "kept" / name).read_text() == "of one.pem\nof two.crt"


def test_names_are_replaced_whole_and_only_as_names_of_files(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    for name in ("x.pem", "x.pem2", "ssl"):
        (tmp_path / name).write_text(name)
    bases = f"global\ncrt-base {tmp_path}\nca-base {tmp_path}"
    text = (
        'listen a\n    bind :443 ssl crt ssl crt "x.pem" crt x.pem2\n'
        f"    acl a path -f {tmp_path}/ssl\n"
        f"    http-request set-path %[path,map({tmp_path}/ssl)]"
    )
    kept = kept_files.keep(state, kept_files.files_in(f"{bases}\n{text}").values())
    found = kept_files.with_copies(text, state, kept, bases)
    for path, name in kept.items():
        found = found.replace(f"{state}/kept/{name}", f"COPY:{Path(path).name}")
    assert found == (
        'listen a\n    bind :443 ssl crt COPY:ssl crt "COPY:x.pem" crt COPY:x.pem2\n'
        "    acl a path -f COPY:ssl\n    http-request set-path %[path,map(COPY:ssl)]"
    )
