"""Files named in sections are changed, corrupted and removed under load: no request fails."""

from __future__ import annotations

import http.client
import signal
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import binary_of
from tests.faults.site import EXTRA, SERVICES, Site, put, serving
from tests.support.frontend import Frontend
from tests.test_contents import certificate, served

pytestmark = pytest.mark.extended

PLAIN, TLS = 8091, 8092
KEPT = "the last good version keeps running"
LINES = """
http-request return status 200 content-type text/plain string listed if { path -f DIR/list }
http-request return status 404 if { path_beg /list/ }
http-request return status 200 content-type text/plain lf-string %[path,map(DIR/map,none)] \
if { path_beg /map/ }
http-request return status 200 content-type text/plain file DIR/body if { path /body }
http-request return status 200 content-type text/plain lf-file DIR/format if { path /format }
http-request deny deny_status 503 if { path /error }
errorfile 503 DIR/error
"""


def page(words: str) -> str:
    """Return a file for `errorfile`: a complete HTTP response (configuration.txt, section 4.2)."""
    return f"HTTP/1.0 503 Service Unavailable\r\nContent-Length: {len(words)}\r\n\r\n{words}"


FILES: dict[str, tuple[str, Callable[[str], str], str | None]] = {
    "list": ("/list/", lambda word: f"/list/{word}\n", None),
    "map": ("/map/x", lambda word: f"/map/x {word}\n", None),
    "body": ("/body", lambda word: word, None),
    "format": ("/format", lambda word: word, "%[nonsense]"),
    "error": ("/error", page, "no answer of HTTP"),
}
"""For each file: the path that shows it, its content for a word, and content HAProxy refuses."""
WORDS = ("one", "two", "six", "ten", "end")


def shown(frontend: Frontend, name: str) -> tuple[tuple[int, bytes], ...]:
    """Return what clients receive from a file."""
    path = FILES[name][0]
    paths = [path + word for word in WORDS] if name == "list" else [path]
    return tuple(frontend.get(path, PLAIN) for path in paths)


class Handshakes:
    """A thread that opens TLS connections one after another, with one request on each."""

    def __init__(self, host: str, port: int) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._at = host, port
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            connection = http.client.HTTPSConnection(*self._at, timeout=5, context=self._context)
            try:
                connection.request("GET", "/")
                if connection.getresponse().status != http.HTTPStatus.OK:
                    self.failures.append("status")
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(repr(exc))
            finally:
                connection.close()
            self.done += 1


def declare(site: Site, directory: Path, tls: str) -> None:
    """Declare services `files` and `tls`, both in front of the pods of shop."""
    lines = [line for line in LINES.replace("DIR", str(directory)).splitlines() if line]
    pods = {"service": "shop", "mode": "http"}
    site.declare("files", PLAIN, **pods, extra_config=lines)
    site.declare("tls", TLS, **pods, bind_options=f"ssl crt {tls}")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changes_costs_no_request(either_binary: str, name: str) -> None:
    """Change the file, in the same second too, then corrupt, fix, remove and restore it."""
    with serving(either_binary) as site:
        frontend = site.frontend
        directory = frontend.directory / "named"
        directory.mkdir(mode=0o755)
        for file, (_, content, _) in FILES.items():
            put(directory / file, content("one"))
        put(directory / "site.pem", "".join(certificate(directory, "site", 1)))
        declare(site, directory, str(directory / "site.pem"))
        _, content, wrong = FILES[name]
        pages = [frontend.until(lambda: shown(frontend, name))]
        with Handshakes(frontend.host, TLS) as handshakes:
            for word in ("two", "six"):
                put(directory / name, content(word))
                frontend.until(lambda: shown(frontend, name) not in pages)
                pages.append(shown(frontend, name))
            if wrong is not None:
                put(directory / name, wrong)
                site.until_held({("service", "files"): KEPT})
                assert shown(frontend, name) == pages[-1]
                put(directory / name, content("ten"))
                frontend.until(lambda: shown(frontend, name) not in pages)
                pages.append(shown(frontend, name))
                site.until_well()
            (directory / name).unlink()
            site.until_held({("service", "files"): KEPT})
            assert shown(frontend, name) == pages[-1]
            # A change of another file in the meantime costs no request.
            put(directory / "body" if name != "body" else directory / "map", "/map/x new\n")
            site.still_serve()
            put(directory / name, content("end"))
            site.is_mended()
            frontend.until(lambda: shown(frontend, name) not in pages)
            before = handshakes.done
            frontend.until(lambda: handshakes.done > before + 8)
        assert not handshakes.failures


@pytest.mark.parametrize("form", ["file", "key beside it", "directory", "list", "relative"])
def test_a_certificate_that_changes_costs_no_handshake(either_binary: str, form: str) -> None:
    """Renew the certificate, write half of it, renew it again, remove it and restore it."""
    with serving(either_binary) as site:
        frontend = site.frontend
        directory = frontend.directory / "named"
        (directory / "tls").mkdir(mode=0o755, parents=True)
        for file, (_, content, _) in FILES.items():
            put(directory / file, content("one"))
        site_pem = directory / "tls" / "site.pem"
        key_file = directory / "tls" / "site.pem.key"

        def renew(serial: int) -> None:
            cert, key = certificate(directory, "site", serial)
            if form == "key beside it":
                put(key_file, key)
                put(site_pem, cert)
            else:
                put(site_pem, cert + key)

        renew(1)
        (directory / "crt-list").write_text(f"{site_pem} [alpn h2,http/1.1]\n")
        if form == "relative":
            frontend.settings["haproxy"]["global_extra"] = [f"crt-base {directory}/tls"]
            frontend.write()
        named = {"directory": str(directory / "tls"), "relative": "site.pem"}.get(
            form, str(site_pem)
        )
        declare(site, directory, named)
        if form == "list":
            options = f"ssl crt-list {directory / 'crt-list'}"
            site.declare("tls", TLS, service="shop", mode="http", bind_options=options)
        frontend.until(lambda: served(frontend, TLS) == 1)
        with Handshakes(frontend.host, TLS) as handshakes:
            renew(2)
            frontend.until(lambda: served(frontend, TLS) == 2)
            put(site_pem, certificate(directory, "site", 3)[0])
            if form == "key beside it":
                put(key_file, certificate(directory, "site", 3)[1])
            site.until_held({("service", "tls"): KEPT})
            assert served(frontend, TLS) == 2
            renew(4)
            frontend.until(lambda: served(frontend, TLS) == 4)
            site.until_well()
            site_pem.unlink()
            site.until_held({("service", "tls"): KEPT})
            site.still_serve()
            assert served(frontend, TLS) == 4
            renew(5)
            frontend.until(lambda: served(frontend, TLS) == 5)
            site.is_mended()
            before = handshakes.done
            frontend.until(lambda: handshakes.done > before + 8)
        assert not handshakes.failures


def test_a_program_of_the_settings_that_is_broken_costs_no_request() -> None:
    """Debian's HAProxy supports Lua.  `global` names the program, so every section needs it."""
    with Frontend(binary_of("2.6-debian")) as frontend:
        program = frontend.directory / "answer.lua"
        good = (
            'core.register_service("answer", "http", function(applet)\n'
            "    applet:set_status(200)\n    applet:start_response()\n"
            '    applet:send("WORD")\nend)\n'
        )
        put(program, good.replace("WORD", "one"))
        frontend.settings["haproxy"]["global_extra"] = [f"lua-load {program}"]
        site = Site(frontend)
        site.start()
        with site.loaded():
            lines = ["http-request use-service lua.answer if { path /lua }"]
            site.declare("files", PLAIN, service="shop", extra_config=lines)
            frontend.until(lambda: frontend.get("/lua", PLAIN) == (200, b"one"))
            put(program, good.replace("WORD", "two"))
            frontend.until(lambda: frontend.get("/lua", PLAIN) == (200, b"two"))
            put(program, "no Lua")
            # Other services are still deployed.
            site.declare(*EXTRA)
            frontend.until(lambda: frontend.ask(EXTRA[1]) == f"{EXTRA[0]}-1")
            frontend.until(site.held)
            assert frontend.get("/lua", PLAIN) == (200, b"two")
            program.unlink()
            frontend.stop_daemon(signal.SIGKILL)
            frontend.start(wait=False)
            site.declare("docs", SERVICES["docs"], slots=12)
            frontend.until(lambda: "pod 12 " in frontend.haproxy_cfg.read_text())
            site.still_serve()
            put(program, good.replace("WORD", "ten"))
            frontend.until(lambda: frontend.get("/lua", PLAIN) == (200, b"ten"))
            site.is_mended()
