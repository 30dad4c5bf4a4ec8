"""The overview and the service pages: their contents, access to them, and their cost."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.demo.dns import Fault
from fc_frontend.errors import Problem
from fc_frontend.explain.facts import Daemon, DaemonService, Held, NameserverAnswer, Worker
from fc_frontend.explain.overview import Seen, overview
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.traffic import Rates, Sample, Traffic, rates
from fc_frontend.model.api_state import ApiState
from fc_frontend.model.service_state import Counts, HaproxyState
from fc_frontend.page import render
from fc_frontend.page.values import EACH_PAGE, Board, PastDeployment, bar, board, select
from tests.bench.soak import LAUNCHER
from tests.conftest import binary_of
from tests.support.census import VARIABLE, types
from tests.support.frontend import Frontend

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Read(HTMLParser):
    """The elements and words that a browser would find in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inlined: dict[str, str] = {}
        self._in = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in ("style", "script") else ""

    def handle_data(self, data: str) -> None:
        if self._in:
            self.inlined[self._in] = self.inlined.get(self._in, "") + data
            self._in = ""
        else:
            self.words.extend(data.split())

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def service(
    name: str, *, pods: int = 3, is_current: bool = True, error: str | None = None
) -> DaemonService:
    return DaemonService(
        name=name,
        namespace="default",
        binds=("*:80",),
        is_current=is_current,
        reason="",
        error=error,
        remedy="",
        pods=pods,
        slots=10,
        slots_short=0,
        slots_scarce=False,
        rejected=(),
        drained=(),
        age=0.5,
    )


def made(
    *services: DaemonService,
    counts: dict[str, Counts] | None = None,
    withheld: tuple[Held, ...] = (),
    of_traffic: dict[str, Rates] | None = None,
    seconds: float | None = None,
    changes: tuple[PastDeployment, ...] = (),
    nameserver: NameserverAnswer | None = None,
    api: ApiState | None = None,
    host: str = "edge0",
) -> Board:
    """Return a board as the daemon builds it."""
    of = counts or {one.name: Counts(up=one.pods or 0) for one in services}
    daemon = Daemon(
        version="1",
        in_sync=True,
        wanted_hash="0" * 16,
        running_hash="0" * 16,
        problems=(),
        withheld=withheld,
        last_reload=None,
        haproxy=HaproxyState.RUNNING,
        services=services,
        api=api,
    )
    seen = Seen(
        daemon=daemon,
        haproxy=HaproxyState.RUNNING,
        worker=Worker(hash="0" * 16, version="2.8", counts=of),
        counts=of,
        services=services,
        withheld=withheld,
        wanted_hash="0" * 16,
        nameservers=(nameserver or NameserverAnswer(name="10.0.0.254:53", seconds=0.001),),
    )
    return board(
        overview(seen),
        rates=of_traffic or {},
        traffic_problem=None,
        seconds=seconds,
        changes=changes,
        queries={"10.0.0.254:53": {"NOERROR": 12345}},
        host=host,
        at=1e9,
    )


def read(of: Board, text: str = "", page: int = 1) -> Read:
    return Read(render.overview_page(of, render.Asked(text, page)).decode())


# Contents


def test_services_that_need_somebody_come_first() -> None:
    page = made(service("a"), service("b", pods=0, error="NXDOMAIN"), service("c"))
    assert [line.name for line in page.lines] == ["b", "a", "c"]
    text = read(page).text
    assert "✖ empty" in text
    assert "● ok" in text
    assert "NXDOMAIN" in text


def test_what_is_withheld_is_told_with_its_message_and_remedy() -> None:
    held = Held(
        kind="service",
        name="shop",
        effect="its last good form goes on",
        is_kept=True,
        problems=(
            Problem(
                message="unknown keyword `bogus`", remedy="take it out", file="/etc/a.yaml", line=3
            ),
        ),
    )
    text = read(made(service("shop"), withheld=(held,))).text
    for words in ("withheld", "unknown keyword bogus", "take it out", "/etc/a.yaml:3"):
        assert words in text
    assert "its last good form goes on" in text


def test_reloads_come_with_their_reasons_the_newest_first() -> None:
    changes = tuple(
        PastDeployment(
            id=number,
            at=1e9 + number,
            outcome="reloaded" if number else "refused",
            accepted=bool(number),
            reasons=tuple(f"service-added s{n}" for n in range(number)),
            seconds=0.25,
        )
        for number in (7, 1, 0)
    )
    text = read(made(changes=changes)).text
    assert "● reloaded 2001-09-09 01:46:47 0.25 s, entry 7" in text
    assert "service-added s4; and 2 more" in text
    assert "✖ refused" in text


def test_rates_are_between_two_looks_at_one_worker() -> None:
    before = Sample(
        at=100.0, pid=1, traffic={"a": Traffic(requests=50, errors=10), "b": Traffic(requests=9)}
    )
    now = Sample(
        at=105.0,
        pid=1,
        traffic={
            "a": Traffic(requests=100, rate=3, errors=30, sessions=7),
            "b": Traffic(requests=2, rate=1),
            "c": Traffic(requests=5, rate=2),
        },
    )
    found, seconds = rates(now, before)
    assert seconds == 5.0
    assert found["a"] == Rates(requests=10.0, errors=4.0, sessions=7)
    # There is no rate for cleared counters and for services that were not there before.
    assert found["b"] == Rates(requests=1.0, errors=None, sessions=0)
    assert found["c"] == Rates(requests=2.0, errors=None, sessions=0)
    for other in (None, replace(before, pid=2), replace(before, pid=None), replace(before, at=105)):
        found, seconds = rates(now, other)
        assert seconds is None
        assert found["a"] == Rates(requests=3.0, errors=None, sessions=7)


def test_rates_say_what_they_are_over() -> None:
    of_traffic = {"a": Rates(requests=1234.0, errors=0.25, sessions=5)}
    text = read(made(service("a"), of_traffic=of_traffic, seconds=9.7)).text
    assert "requests a second 1 234 errors a second 0.2 " in text
    assert "Rates are averages of the last 10 s." in text
    of_traffic = {"a": Rates(requests=1.0, errors=None, sessions=5)}
    text = read(made(service("a"), of_traffic=of_traffic)).text
    assert "errors a second — " in text
    assert "Rates are averages of the last second; error rates are not available yet." in text


def test_nameservers_are_told_with_their_words() -> None:
    failing = NameserverAnswer(name="10.0.0.254:53", said="no answer within 1 s")
    text = read(made(nameserver=failing)).text
    assert "▲ fails 10.0.0.254:53 no answer within 1 s" in text
    assert "NOERROR 12" in text


def test_the_watch_of_the_api_is_told_where_there_is_one() -> None:
    without = read(made())
    assert "Kubernetes API" in without.text
    (section,) = (each for each in without.named("section") if each.get("id") == "api")
    assert "hidden" in section
    good = ApiState(is_current=True, age=1.0, expires=2e9)
    assert (
        "● watched last contact 1 s ago credentials valid until 2033-05-18 03:33"
        in read(made(api=good)).text
    )
    bad = ApiState(age=7200.0, failure=HOSTILE, held=frozenset(("b", "a")))
    page = read(made(api=bad))
    assert f"▲ not watched {HOSTILE} last contact 2 h ago Last pods kept for a, b" in page.text
    (section,) = (each for each in page.named("section") if each.get("id") == "api")
    assert "hidden" not in section


def test_nothing_declared_says_what_to_do() -> None:
    text = read(made()).text
    assert "No service is declared" in text
    assert "fc-frontend check" in text


@pytest.mark.parametrize(
    ("counts", "slots", "parts"),
    [
        (Counts(up=5), 10, (("up", 0.0, 50.0),)),
        (
            Counts(up=2, down=1, drained=1, maintenance=1),
            10,
            (("up", 0.0, 20.0), ("away", 20.0, 20.0), ("down", 40.0, 10.0)),
        ),
        (Counts(up=20), 10, (("up", 0.0, 100.0),)),
        (Counts(free=10), 10, (("pods", 0.0, 30.0),)),
    ],
)
def test_the_bar_shows_servers_in_slots(
    counts: Counts, slots: int, parts: tuple[tuple[str, float, float], ...]
) -> None:
    line = made(service("a"), counts={"a": counts}).lines[0]
    found = bar(line)
    if not counts.with_pod:
        assert found == ()
    else:
        assert found == parts


# Thousands of services


def many(count: int) -> Board:
    return made(*(service(f"s{number:05}") for number in range(count)))


def test_thousands_of_services_come_in_pages_that_can_be_searched() -> None:
    of = many(5000)
    page = read(of, page=50)
    assert page.text.count("● ok") == EACH_PAGE + 1
    assert "page 50 of 50" in page.text
    assert "/services/s04999" in [link["href"] for link in page.named("a")]
    assert read(of, "s0499").text.count("● ok") == 11
    assert "None of 5" in read(of, "nothing like it").text
    assert len(render.overview_page(of, render.Asked())) < 150_000


@given(st.text(max_size=50), st.integers(-5, 10**9))
def test_any_page_of_any_text_is_some_page(text: str, number: int) -> None:
    found = select(many(120).lines, text, number)
    assert 1 <= found.page <= found.pages
    assert len(found.lines) <= EACH_PAGE


@pytest.mark.parametrize(
    ("query", "text", "page"),
    [
        ("", "", 1),
        ("q=shop&page=3", "shop", 3),
        ("q=a&q=b", "b", 1),
        ("page=0", "", 1),
        ("page=-1", "", 1),
        ("page=%D9%A3", "", 1),
        ("page=99999999999", "", 1),
        ("q=%ff%00%1b%0d%0a", "\ufffd\\x00\\x1b", 1),
        ("&".join("q=1" for _ in range(500)), "", 1),
        ("q=" + "x" * 5000, "x" * 100, 1),
    ],
)
def test_a_query_string_may_say_anything(query: str, text: str, page: int) -> None:
    found = render.asked(query)
    assert found.page == page
    assert found.text == text


# Hostile values


def test_values_are_text_wherever_they_come_from() -> None:
    held = Held(
        kind="service",
        name=HOSTILE,
        effect=HOSTILE,
        is_kept=False,
        problems=(Problem(message=HOSTILE, remedy=f"`{HOSTILE}`", file=HOSTILE, field=HOSTILE),),
    )
    change = PastDeployment(
        id=1, at=0.0, outcome=HOSTILE, accepted=True, reasons=(HOSTILE,), seconds=0.0
    )
    of = made(
        service(HOSTILE, pods=0, error=HOSTILE),
        withheld=(held,),
        changes=(change,),
        nameserver=NameserverAnswer(name=HOSTILE, said=HOSTILE),
        host=HOSTILE,
    )
    problem = Problem(message=HOSTILE, remedy=HOSTILE, file=HOSTILE)
    pages = {
        "overview": render.overview_page(of, render.Asked(HOSTILE)),
        "all": render.overview_page(of, render.Asked()),
        "missing": render.missing_page(of, HOSTILE, HOSTILE),
        "not yet": render.not_yet_page(problem, HOSTILE),
    }
    for name, body in pages.items():
        page = Read(body.decode())
        assert len(page.named("script")) == 1, name
        assert not page.named("img"), name
        assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
        assert "alert(1)" in page.text, name


def test_only_what_stands_in_the_page_itself_is_taken_by_browsers() -> None:
    page = read(made(service("a")))
    policy = render.headers()["Content-Security-Policy"]
    for tag in ("style", "script"):
        digest = hashlib.sha256(page.inlined[tag].encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    # The policy would refuse a style attribute.
    assert not [1 for _, attributes in page.tags if "style" in attributes]
    for _, attributes in page.tags:
        for name in ("href", "src", "action"):
            value = attributes.get(name) or "/"
            assert value.startswith(("/", "#", "data:image/svg+xml,")), value
    assert not re.search(r"url\(|@import", page.inlined["style"])


def luminance(color: str) -> float:
    """Return the relative luminance (WCAG 2.1, 1.4.3)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(scheme: int) -> None:
    style = read(made()).inlined["style"]
    blocks = re.findall(r":root\s*{([^}]*)}", style)
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for ground in ("ground", "card"):
        for ink in ("ink", "quiet", "link", "ok", "warning", "critical", "unknown"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    # Parts of pictures: 3 to 1 (1.4.11).
    for part in ("bar-up", "bar-down", "bar-away"):
        assert contrast(colors[part], colors["card"]) >= 2.0, part


# Over HTTP, from a real daemon


def get(
    frontend: Frontend, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(frontend.host, 9484, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read().decode()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, body
    finally:
        connection.close()


def test_the_pages_of_a_real_frontend(either_binary: str) -> None:
    with Frontend(either_binary) as frontend:
        frontend.scale("shop", 2)
        frontend.settings["services"]["shop"] = frontend.service("shop", 10000)
        frontend.settings["services"]["ghost"] = frontend.service("ghost", 10001)
        frontend.settings["haproxy"]["global_extra"] = "# a secret: hunter2"
        (frontend.services_d / "raw.cfg").write_text("backend raw\n    server a 127.0.0.1:1\n")
        frontend.start()
        frontend.until(lambda: frontend.ask(10000).startswith("shop"))
        frontend.until(lambda: "● ok shop" in Read(get(frontend, "/services/shop")[2]).text)

        status, headers, body = get(frontend, "/")
        page = Read(body)
        assert status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == render.headers()["Content-Security-Policy"]
        for words in ("2 of 10", "✖ empty", "● started", "start", "answers", "in sync"):
            assert words in page.text, words
        assert "hunter2" not in body

        # 503s are errors; their rate takes two samples of the same worker.
        def failing() -> bool:
            frontend.ask(10001)
            text = Read(get(frontend, "/")[2]).text
            return bool(re.search(r"errors a second (0\.[1-9]|[1-9<])", text))

        frontend.until(failing)

        status, _, body = get(frontend, "/services/ghost")
        page = Read(body)
        assert status == 200
        assert "✖ bad dns" in page.text
        assert "kubectl -n default get service" in page.text
        status, _, body = get(frontend, "/services/shop")
        assert status == 200
        for step in ("declaration", "dns", "networks", "slots", "servers", "bind", "configuration"):
            assert f"● ok {step}" in Read(body).text
        status, _, body = get(frontend, "/services/raw")
        assert status == 200
        assert "fragment" in body

        status, _, body = get(frontend, "/services/shpo")
        assert status == 404
        assert "Do you mean shop ?" in Read(body).text
        for path in (
            "/services/%3Cscript%3E",
            "/services/..%2f..%2fetc",
            "/services/",
            "/services",
        ):
            status, _, body = get(frontend, path)
            assert status == 404, path
            assert "<script>" not in body.replace('<script>"use strict"', "")
        assert get(frontend, "/", "HEAD")[::2] == (200, "")
        assert get(frontend, "/", "POST")[0] == 405
        assert get(frontend, "/", Host="evil.example")[0] == 421


def test_a_daemon_that_could_read_nothing_says_why(either_binary: str) -> None:
    with Frontend(either_binary) as frontend:
        frontend.settings["haproxy"]["binary"] = "/nonexistent/haproxy"
        frontend.write()
        frontend.start(wait=False)
        frontend.until(lambda: frontend.get("/healthz")[0] == 200)
        frontend.until(lambda: "/nonexistent/haproxy" in get(frontend, "/")[2])


def looks(frontend: Frontend) -> int:
    """Return how often pages have queried cluster DNS."""
    return sum(
        number
        for (name, _, _), number in frontend.dns.queries.items()
        if name == "svc.cluster.local"
    )


def test_all_who_look_at_once_share_one_look() -> None:
    with Frontend(binary_of("2.8-wheel")) as frontend:
        frontend.scale("shop", 2)
        frontend.settings["services"]["shop"] = frontend.service("shop", 10000)
        frontend.start()

        before = looks(frontend)
        # The query takes a second, so all requests arrive while it is in progress.
        frontend.dns.fault_for["svc.cluster.local"] = Fault.SILENT
        with ThreadPoolExecutor(20) as pool:
            pages = list(pool.map(lambda _: get(frontend, "/"), range(20)))
        assert [status for status, _, _ in pages] == [200] * 20
        assert all("no answer within" in body for _, _, body in pages)
        assert looks(frontend) - before <= 2


def test_what_was_found_is_kept_no_longer_than_it_is_shown() -> None:
    """For thousands of services, one board takes tens of megabytes."""
    kind = f"{Board.__module__}.{Board.__qualname__}"
    with Frontend(binary_of("2.8-wheel")) as frontend:
        frontend.scale("shop", 2)
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        path = str(frontend.directory / "census.sock")
        frontend.launcher, frontend.environ = LAUNCHER, {VARIABLE: path}
        frontend.start()

        def kept() -> int:
            """Show two pages and return the number of boards kept; 0 if they have expired."""
            assert frontend.get("/")[0] == frontend.get("/services/shop")[0] == 200
            return types(path)[kind]

        for _ in range(4):
            before = looks(frontend)
            frontend.until(lambda: kept() and looks(frontend) > before)  # noqa: B023
            assert frontend.until(kept) <= 2
        frontend.until(lambda: types(path)[kind] == 0)


def test_a_haproxy_that_hangs_keeps_nobody_waiting_but_those_who_look(
    either_binary: str,
) -> None:
    with Frontend(either_binary) as frontend:
        frontend.scale("shop", 2)
        frontend.settings["services"]["shop"] = frontend.service("shop", 10000)
        frontend.start()
        worker = show_proc(frontend.settings["haproxy"]["master_socket"]).worker
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        try:
            found: list[str] = []
            looking = threading.Thread(target=lambda: found.append(get(frontend, "/")[2]))
            looking.start()
            answered = 0
            while looking.is_alive():
                assert frontend.get("/healthz")[0] == 200
                assert frontend.get("/metrics")[0] == 200
                answered += 1
            looking.join()
        finally:
            os.kill(worker, signal.SIGCONT)
        assert answered >= 5
        assert "no answer" in Read(found[0]).text
