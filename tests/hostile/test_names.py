"""Names that deceive readers or break output: all output stays intact, other services too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fc_frontend.text import is_printable
from tests.conftest import binary_of
from tests.support.frontend import Frontend

FILES = (
    *(b"\xff.yaml", b"a\nb.yaml", b"\x1b[2J.json", b"\xe2\x80\xaeyaml.cfg", b"\xc2\x9b31m.yml"),
    *(
        b"x" * 250 + b".yaml",
        b"-c.yaml",
        b"a|b=1.yaml",
        b"<b>.yaml",
        b"%s{}.yaml",
        b"e\xcc\x81.yaml",
    ),
    *(b"\xc3\xa9.yaml", b"\xed\xa0\x80.yaml", b"CON.yaml", b"Shop.yaml", b"..yaml.yaml"),
)
NAMES = (
    *("\0", "a\nb", "\x1b]0;x\x07", "\u202egpj", "\u2066x", "\ufeff", "\u3164", "e\u0301", "\xe9"),
    *("x" * 100_000, "../../etc/passwd", "__proto__", "constructor", "shop|cart=1", "<script>"),
    *("", " ", "SHOP", "\U000e0041", "{{ 7*7 }}", "%s", "a\r\nfc_frontend_x 1"),
)
HALVES = (r'{"services": {"\ud800": {"pod_port": 1}}}', r'{"\udcff": 1}')


@pytest.fixture(scope="module")
def frontend() -> Iterator[Frontend]:
    with Frontend(binary_of("2.8-wheel")) as frontend:
        frontend.settings["intervals"].update(debounce="20ms", reload="200ms")
        frontend.settings["services"] = {"shop": frontend.service("shop", 8081)}
        frontend.scale("shop", 1)
        frontend.start()
        directory = os.fsencode(frontend.services_d)
        for number, name in enumerate(FILES):
            content = f"services: {{f{number}: {{pod_port: 1, no_such_field: 1}}}}"
            Path(os.fsdecode(directory + b"/" + name)).write_text(content)
        for number, text in enumerate(HALVES):
            frontend.drop(f"half{number}.json", text)
        frontend.drop("names.json", {name: {"pod_port": 1, name: name} for name in NAMES})
        # None of these files affects another service.
        frontend.drop("good.json", {"good": frontend.service("shop", 8082)})
        frontend.until(lambda: frontend.serves(8082, frontend.pods["shop"]))
        yield frontend


def run(frontend: Frontend, *arguments: str, encoding: str = "utf-8") -> str:
    """Return the output of a command on a terminal with this encoding."""
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", *arguments, "--config", str(frontend.config)],
        capture_output=True,
        timeout=120,
        check=False,
        env=environ,
    )
    # click uses UTF-8 if the terminal appears to support only ASCII.
    out, err = (
        text.decode(encoding.replace("ascii", "utf-8")) for text in (done.stdout, done.stderr)
    )
    assert "Traceback" not in err
    lines(out + err)
    return out


def lines(text: str) -> list[str]:
    """Return the lines of an output, and check that all of them are printable."""
    found = text.split("\n")
    assert all(map(is_printable, found)), [line for line in found if not is_printable(line)]
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso-8859-1"])
def test_texts_can_be_printed_everywhere(frontend: Frontend, encoding: str) -> None:
    if encoding == "utf-8":
        assert "\\udcff.yaml" in run(frontend, "status")
    for arguments in (("check",), ("status",), ("check", "--json"), ("history",)):
        run(frontend, *arguments, encoding=encoding)


@pytest.mark.extended
def test_each_command_prints_what_can_be_read(frontend: Frontend) -> None:
    for name in ("shop", "__proto__", "../../etc/passwd", "<script>", "x" * 10_000):
        run(frontend, "explain", name)
        whole(run(frontend, "explain", name, "--json"))
    for arguments in (("diff",), ("resolve",), ("doctor",)):
        run(frontend, *arguments)
        whole(run(frontend, *arguments, "--json"))
    for command in ("check", "status", "history"):
        whole(run(frontend, command, "--json"))


@pytest.mark.parametrize("command", [("check", "--strict"), ("status",), ("doctor",)], ids=" ".join)
def test_nagios_gets_one_summary_and_figures(frontend: Frontend, command: tuple[str]) -> None:
    first, *others = run(frontend, *command, "--format", "nagios").strip().split("\n")
    assert first.startswith("FC-FRONTEND CRITICAL - ")
    assert first.count("|") == 1
    assert not any("|" in line for line in others)
    assert len(others) <= 51


@pytest.mark.parametrize("argument", ["\udcff", "a\nb", "\x1b[2J", "\u202e"])
def test_arguments_that_are_not_printable_are_refused(argument: str) -> None:
    for arguments in (["explain", argument], ["check", "-c", argument], [argument]):
        done = subprocess.run(
            [sys.executable, "-m", "fc_frontend", *arguments], capture_output=True, check=False
        )
        assert done.returncode == 2
        assert len(lines(done.stderr.decode())) == 2
    environ = {**os.environ, "FC_FRONTEND_CONFIG": argument}
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", "check"],
        capture_output=True,
        check=False,
        env=environ,
    )
    assert done.returncode == 2
    lines(done.stderr.decode())


def test_the_daemon_reports_each_name_so_that_it_can_be_read(frontend: Frontend) -> None:
    status, body = frontend.get("/status.json")
    assert status == 200
    lines(body.decode())
    document = whole(body.decode())
    held = {(entry["kind"], entry["name"]) for entry in document["withheld"]}
    directory = str(frontend.services_d)
    assert ("file", rf"{directory}/\udcff.yaml") in held
    assert ("file", rf"{directory}/a\nb.yaml") in held
    assert ("file", f"{directory}/half0.json") in held
    assert ("service", "__proto__") in held
    assert ("service", r"a\nb") in held
    assert max(len(name) for _, name in held) < 500
    assert {service["name"] for service in document["services"]} == {"shop", "good"}


def test_metrics_and_pages_stay_well_formed(frontend: Frontend) -> None:
    status, body = frontend.get("/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(body.decode()))
    names = {s.labels.get("service") for family in families for s in family.samples}
    assert names == {None, "shop", "good"}
    for path in (
        "/",
        "/?q=%ff%00%E2%80%AE",
        "/services/shop",
        "/services/__proto__",
        "/services/%ff%0a",
    ):
        status, body = frontend.get(path)
        assert status in (200, 404)
        page = Page()
        page.feed(body.decode())
        page.close()
        assert not page.open
        # The pages group digits by a narrow space.
        lines("".join(page.text).replace("\u202f", " "))


def test_the_log_has_one_line_for_each_event(frontend: Frontend) -> None:
    text = frontend.log_text()
    assert "Traceback" not in text
    ours = [line for line in lines(text) if line[:4].isdigit()]
    assert any(r"\\udcff.yaml" in line or r"\udcff.yaml" in line for line in ours)
    assert max(map(len, ours)) < 8000


HOLDER = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b"\\xff\\x1b[2J\\nx")  # PR_SET_NAME
with socket.create_server((sys.argv[1], 8085)):
    print("listening", flush=True)
    sys.stdin.read()
"""


def test_a_process_may_have_any_name(frontend: Frontend) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, frontend.host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"listening\n"
        frontend.drop("held.json", {"held": frontend.service("shop", 8085)})
        frontend.until(lambda: r"\udcff\x1b[2J\nx" in reported(frontend, "held"))
        explained = run(frontend, "explain", "held")
        assert r"\udcff\x1b[2J\nx" in explained
        holder.communicate()
    (frontend.services_d / "held.json").unlink()
    frontend.until(lambda: not reported(frontend, "held"))


def reported(frontend: Frontend, service: str) -> str:
    """Return the problems of a service in the daemon's status."""
    document = frontend.status()
    held = [problem for each in document["withheld"] for problem in each["problems"]]
    return " ".join(
        problem["message"]
        for problem in (*document["problems"], *held)
        if problem["service"] == service
    )


def whole(text: str) -> dict[str, Any]:
    """Parse a JSON document, and check that it contains no lone surrogate."""
    document: dict[str, Any] = json.loads(text)
    json.dumps(document, ensure_ascii=False).encode()
    return document


class Page(HTMLParser):
    """The text of a page, and its unclosed elements."""

    VOID = frozenset(("meta", "link", "input", "br", "hr", "img"))

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
