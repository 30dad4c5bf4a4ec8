"""The pages in a real browser: Chromium, with access to this listener only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from axe_core_python.selenium import Axe  # type: ignore[import-untyped]
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from fc_frontend.haproxy.binary import bundled_binary
from tests.conftest import until
from tests.support.browser import chromium_with
from tests.support.frontend import Frontend
from tests.support.issued import Authority

pytestmark = pytest.mark.extended

T = TypeVar("T")
HOSTILE = "<script>document.title='owned'</script>"
PHONE = 360
SITES: dict[str, dict[str, Any]] = {"valid": {}, "soon": {"days": 5}, "late": {"ended": True}}
"""How the certificate of each host is issued."""
SITES_BY_END = ("late", "soon", "valid")
PATHS = {
    "overview": "/",
    "filtered": "/?q=shop",
    "nothing found": "/?q=xyzzy",
    "a service": "/services/shop",
    "a service without pods": "/services/ghost",
    "a service withheld": "/services/bad",
    "no such service": "/services/nosuch",
}


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """Healthy, empty, degraded and withheld services, enough for a filter, and some sites."""
    binary = bundled_binary()
    assert binary is not None
    authority = Authority(tmp_path_factory.mktemp("authority"))
    with Frontend(str(binary)) as made:
        certificates = made.directory / "certificates"
        certificates.mkdir()
        for name, more in SITES.items():
            issued = authority.issue(f"{name}.example.org", **more)
            (certificates / f"{name}.pem").write_bytes(issued.chain + issued.key)
        made.settings["frontends"] = {
            "web": {"binds": f"{made.host}:8443", "tls": {"certificates": str(certificates)}}
        }
        for name, pods in (("shop", 3), ("api", 2)):
            made.scale(name, pods)
        services = made.settings["services"]
        for number, name in enumerate(("shop", "api", "ghost")):
            services[name] = made.service(name, 10000 + number)
        for number in range(10):
            services[f"other{number}"] = made.service("shop", 10010 + number)
        services["site"] = {
            "frontend": "web",
            "service": "shop",
            "hosts": [f"{name}.example.org" for name in SITES],
            "paths": ["/app"],
            "pod_port": 8080,
        }
        made.start()
        services["bad"] = made.service("shop", 10003, extra_config=f"{HOSTILE} keyword")
        made.write()
        made.call(made.pods["api"].pods[0].stop())
        made.until(lambda: b"withheld" in made.get("/")[1])
        made.until(lambda: b"degraded" in made.get("/")[1])
        yield made


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    arguments = ("--proxy-bypass-list=127.0.0.0/8", "--window-size=1200,900")
    with chromium_with(tmp_path_factory.mktemp("chromium"), *arguments, logs=True) as browser:
        yield browser


Opens = Callable[..., webdriver.Chrome]


@pytest.fixture
def opens(frontend: Frontend, chromium: webdriver.Chrome) -> Iterator[Opens]:
    """Yield a function that opens a page with a scheme and screen; reset the browser afterwards."""

    def opened(
        path: str, *, scheme: str = "light", width: int = 1200, scripts: bool = True
    ) -> webdriver.Chrome:
        command = chromium.execute_cdp_cmd
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        command("Emulation.setDeviceMetricsOverride", metrics)
        command("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        chromium.get(f"http://{frontend.host}:9484{path}")
        return chromium

    logged(chromium, "browser")
    logged(chromium, "performance")
    yield opened
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def text(browser: webdriver.Chrome) -> str:
    return found(lambda: browser.find_element(By.TAG_NAME, "body"), lambda body: body.text)


def logged(browser: webdriver.Chrome, of: str) -> list[str]:
    """Return the messages logged since the last call."""
    return [entry["message"] for entry in browser.get_log(of)]  # type: ignore[no-untyped-call]


def complaints(browser: webdriver.Chrome) -> list[str]:
    """Return the browser's complaints about a page, except its status 404."""
    return [said for said in logged(browser, "browser") if "status of 404" not in said]


def focused(browser: webdriver.Chrome, act: Callable[[WebElement], T]) -> T:
    """Return the result of `act` on the element that has the focus."""
    return found(lambda: browser.switch_to.active_element, act)


def found(find: Callable[[], WebElement], act: Callable[[WebElement], T]) -> T:
    """Return the result of `act` on an element; look it up again if the page was renewed."""
    for _ in range(4):
        with contextlib.suppress(StaleElementReferenceException):
            return act(find())
    return act(find())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_nothing_stands_in_the_way_of_anybody(opens: Opens, path: str, scheme: str) -> None:
    browser = opens(path, scheme=scheme)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(246, 247, 249)") == (scheme == "light")
    report = Axe().run(browser)
    said = [
        f"{rule['id']}: {node['html']}" for rule in report["violations"] for node in rule["nodes"]
    ]
    assert not said
    assert len(report["passes"]) > 15
    assert not complaints(browser)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_phone_shows_all_without_moving_sideways(opens: Opens, path: str) -> None:
    browser = opens(path, width=PHONE)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= PHONE
    outside = browser.execute_script(
        """
        return [...document.querySelectorAll("main *")].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width > 0 && box.right > innerWidth + 1 && !one.closest("pre, thead, .bar");
        }).map((one) => one.outerHTML)
        """
    )
    assert not outside


def test_frontends_are_shown_with_their_routes_and_certificates(opens: Opens) -> None:
    browser = opens("/")
    shown = browser.find_element(By.ID, "frontends").text
    assert "web" in shown
    assert ":8443, TLS" in shown
    assert "late.example.org/app, soon.example.org/app, valid.example.org/app → site" in shown
    browser.find_element(By.ID, "frontends").find_element(By.LINK_TEXT, "site")
    lines = browser.find_element(By.ID, "certificates").text.splitlines()
    states = [line for line in lines if ".example.org" in line and "until" in line]
    assert len(states) == 3
    for line, word, name in zip(states, ("ended", "ends soon", "valid"), SITES_BY_END, strict=True):
        assert word in line
        assert f"{name}.example.org frontend web, until 20" in line


def test_keys_are_enough(opens: Opens) -> None:
    browser = opens("/")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert focused(browser, lambda one: one.accessible_name) == "Skip to the content"
    # The link must be visible while it has the focus.
    until(lambda: focused(browser, lambda one: one.rect["y"]) >= 0)
    focused(browser, lambda one: one.send_keys(Keys.ENTER))
    until(lambda: focused(browser, lambda one: one.get_attribute("id")) == "content")
    seen = []
    for _ in range(6):
        focused(browser, lambda one: one.send_keys(Keys.TAB))
        seen.append(focused(browser, lambda one: one.accessible_name))
    assert "Name, namespace, bind or state" in seen
    assert "Filter" in seen
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    field = browser.find_element(By.ID, "q")
    field.send_keys("ghost", Keys.ENTER)
    until(lambda: "q=ghost" in browser.current_url)
    assert "1 to 1 of 1 that match “ghost”" in text(browser)
    found(
        lambda: browser.find_element(By.LINK_TEXT, "ghost"), lambda one: one.send_keys(Keys.ENTER)
    )
    until(lambda: browser.current_url.endswith("/services/ghost"))
    assert "no such service, or no ready pods" in text(browser)


def test_nothing_is_asked_of_anybody_else(opens: Opens, frontend: Frontend) -> None:
    browser = opens("/")
    opens("/services/shop")
    events = [json.loads(said)["message"] for said in logged(browser, "performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    origin = f"http://{frontend.host}:9484/"
    # On a slow machine, the first page may request itself again.
    told = dict.fromkeys(url for url in asked if not url.startswith("data:"))
    assert [origin, f"{origin}services/shop"] == list(told)


def test_what_others_wrote_is_never_executed(opens: Opens) -> None:
    for path, words in (
        ("/", HOSTILE),
        ("/services/bad", HOSTILE),
        (f"/?q={HOSTILE}", HOSTILE),
        ("/services/<svg onload=alert(1)>", "<svg onload=alert(1)>"),
    ):
        browser = opens(path)
        assert "owned" not in browser.title
        assert words in text(browser), path
        assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
        assert not complaints(browser)
    # An injected script is not executed either: the policy allows only fc-frontend's own script.
    browser.execute_script(
        """
        const one = document.createElement("script");
        one.textContent = "document.title = 'owned'";
        document.body.append(one);
        """
    )
    assert browser.title != "owned"
    assert any("Content Security Policy" in said for said in complaints(browser))


def test_all_is_there_without_scripts(opens: Opens) -> None:
    browser = opens("/", scripts=False)
    assert "▲ degraded" in text(browser)
    assert "withheld" in text(browser)
    # Chromium exposes the contents of noscript as elements only if scripts are disabled.
    assert browser.find_elements(By.CSS_SELECTOR, "noscript > meta[http-equiv=refresh]")


def test_bars_are_as_long_as_they_should_be(opens: Opens) -> None:
    browser = opens("/services/shop")
    width: dict[str, Any] = browser.execute_script(
        """
        const bar = document.querySelector(".bar");
        const up = bar.querySelector(".up");
        return { whole: bar.getBoundingClientRect().width, up: up.getBoundingClientRect().width };
        """
    )
    assert width["whole"] > 50
    assert width["up"] / width["whole"] == pytest.approx(0.3, abs=0.02)


def test_what_changes_is_shown_where_the_reader_is(opens: Opens, frontend: Frontend) -> None:
    browser = opens("/")
    focus = """
        [...document.querySelectorAll("a")].find((one) => one.textContent === "other9").focus();
    """
    browser.execute_script(f"{focus} window.same = true")
    top = browser.execute_script("return scrollY")
    assert "4 of 10" not in text(browser)
    pause = browser.find_element(By.ID, "pause")
    pause.send_keys(Keys.ENTER)
    assert "paused" in text(browser)
    assert pause.text == "Resume"
    frontend.scale("shop", 4)
    frontend.until(lambda: frontend.metric("fc_frontend_service_endpoints", service="shop") == 4)
    assert "4 of 10" not in text(browser)
    browser.execute_script(f"{focus} document.getElementById('pause').click()")
    until(lambda: "4 of 10" in text(browser))
    assert browser.execute_script("return window.same === true"), "it was not loaded anew"
    assert focused(browser, lambda one: one.text) == "other9"
    assert browser.execute_script("return scrollY") == pytest.approx(top, abs=60)
    frontend.stop_daemon()
    try:
        until(lambda: "fc-frontend does not answer: this page is out of date" in text(browser))
        assert "other9" in text(browser)
    finally:
        frontend.start()
    until(lambda: "this page is out of date" not in text(browser))
