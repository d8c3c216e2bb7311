"""HTML pages in headless Chromium, as their readers meet them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

BROWSER_MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not both installed"
    ),
]

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

NAMED = (
    *("image", "img", "button", "slider", "region", "link", "canvas"),
    *("article", "combobox", "radio", "textbox"),
)
"""Roles of what has to have a name."""


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser, started once."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.get("about:blank")  # its own first page loads parts for a while
    yield driver
    driver.quit()


class Opened:
    """A page in the browser."""

    def __init__(self, chrome: Any, file: Path, width: int = 1200, dark: bool = False) -> None:
        self.chrome = chrome
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [theme]})
        for kind in ("browser", "performance"):
            chrome.get_log(kind)
        self.address, self.width = file.as_uri(), width
        chrome.get(self.address)

    def run(self, script: str) -> Any:
        return self.chrome.execute_script(script)

    def all(self, css: str) -> list[Any]:
        return self.chrome.find_elements("css selector", css)

    def out(self, name: str) -> str:
        """Return what is shown at the first such place that can be seen."""
        found = (
            f"[...document.querySelectorAll('[data-out=\"{name}\"]')].find((each) => each.checkVisibility())"
        )
        return str(self.run(f"return {found}.textContent"))

    def visible(self, css: str) -> list[Any]:
        """Return the elements that are shown."""
        return [each for each in self.all(css) if each.is_displayed()]

    def requested(self) -> set[str]:
        """Return the addresses of all that was asked for, in whatever way."""
        entries = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        sent = [entry for entry in entries if entry["method"] == "Network.requestWillBeSent"]
        return {entry["params"]["request"]["url"].partition(",")[0] for entry in sent}

    def check_quiet_and_fitting(self) -> None:
        """Nothing on the console, no request but for the page and what lies in it, nothing sticks out."""
        assert self.chrome.get_log("browser") == []
        elsewhere = {url for url in self.requested() if not url.startswith("data:")} - {self.address}
        assert not elsewhere, elsewhere
        assert self.run("return document.documentElement.scrollWidth") <= self.width
        beyond = """return [...document.querySelectorAll('body *')]
            .filter((each) => !each.closest('.scroll, svg, .skip'))
            .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
            .map((each) => each.outerHTML.slice(0, 80))"""
        assert self.run(beyond) == []

    def check_names(self) -> None:
        """Controls and pictures are named, ids are unique, headings leave no level out."""
        nodes = self.chrome.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        for node in nodes:
            role = node.get("role", {}).get("value")
            if not node["ignored"] and role in NAMED:
                assert node["name"]["value"], node
        ids = self.run("return [...document.querySelectorAll('[id]')].map((each) => each.id)")
        assert len(ids) == len(set(ids))
        levels = self.run(
            "return [...document.querySelectorAll('h1,h2,h3')].map((each) => Number(each.tagName[1]))"
        )
        assert levels[0] == 1
        assert all(second - first <= 1 for first, second in pairwise(levels))
