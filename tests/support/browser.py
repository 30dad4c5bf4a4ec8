"""Chromium, restricted to loopback addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver

CHROMIUM = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"


@contextlib.contextmanager
def chromium_with(profile: Path, *arguments: str, logs: bool = False) -> Iterator[webdriver.Chrome]:
    """Start a browser with a new profile in that directory; `logs` are for `get_log`."""
    for program, package in ((CHROMIUM, "chromium"), (DRIVER, "chromium-driver")):
        assert Path(program).exists(), f"apt install {package}"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless",
        "--no-sandbox",  # Chromium runs as root where the tests do.
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={profile}",
        *(arguments or ("--proxy-bypass-list=127.0.0.0/8",)),
    ):
        options.add_argument(argument)
    if logs:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()
