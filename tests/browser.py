"""Headless Chromium, for the pages we write: opened from disk, as a user does.

A test takes the fixture `open_page` (tests/conftest.py):

    def test_a_page(open_page, tmp_path):
        page = open_page(tmp_path / "report.html", dark=True, phone=True)
        page.keyboard.press("ArrowRight")          # Playwright's Page, synchronous
        assert browser.axe(page) == []
        browser.screenshot(page, "report-dark-phone")

When the test ends, whatever a page said on its console as an error, threw, or asked of the network
fails it. `page.context.new_page()` is one more tab with the same localStorage, not watched.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_DESK, _PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
_SERIOUS = ("serious", "critical")


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """The system's browser, of $CHROMIUM or the PATH; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"there is no browser: none of {', '.join(_NAMES)}, and CHROMIUM is not set")
    with api.sync_playwright() as playwright:
        # Its sandbox does not work for root, or in most containers; it reads our own pages only.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Pages:
    """Opens pages, and knows what went wrong in them."""

    def __init__(self, browser: "Browser"):
        self._browser = browser
        self.faults: list[str] = []

    def __call__(
        self, path: Path, dark: bool = False, phone: bool = False, script: str = ""
    ) -> "Page":
        """A page in a profile of its own; `script` runs before any of the page's own."""
        context = self._browser.new_context(
            viewport=_PHONE if phone else _DESK,
            device_scale_factor=2 if phone else 1,
            has_touch=phone,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",  # or axe measures colours on their way
        )
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        page.on("pageerror", lambda error: self.faults.append(f"thrown: {error}"))
        page.on("request", lambda request: self._look_at(request.url))
        if script:
            page.add_init_script(script)
        page.goto(path.absolute().as_uri())
        return page

    def _look_at(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"the page asks the network for {url}")

    def close(self) -> None:
        for context in self._browser.contexts:
            context.close()


def axe(page: "Page") -> list[str]:
    """What axe-core finds serious or critical in the page as it stands, a sentence each."""
    source = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(source + ";0")  # through the debugger, which a page's own policy does not bind
    return [
        f"{found['id']}: {found['help']}: {node['html'][:200]}: {node['failureSummary']}"
        for found in page.evaluate("axe.run()")["violations"]
        if found["impact"] in _SERIOUS
        for node in found["nodes"]
    ]


def overflow(page: "Page") -> int:
    """By how many pixels the page is wider than its window: 0 if nobody must scroll sideways."""
    root = "document.documentElement"
    return page.evaluate(f"Math.max(0, {root}.scrollWidth - {root}.clientWidth)")


def screenshot(page: "Page", name: str, whole: bool = True) -> None:
    """Writes `name`.png for people to look at, where $SCREENSHOTS names a directory."""
    if directory := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}.png", full_page=whole)
