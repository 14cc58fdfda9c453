"""One browser for all tests, a server that says what a test wants, and a page that is watched.

A watched page fails its test at the end when something broke the content policy, was asked of another site, opened a
dialog, left the page, threw an error, or set the canary that every hostile text tries to set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.server.page.fake_server import FakeServer

CHROMIUM = "/usr/bin/chromium"
WIDE = {"width": 1280, "height": 800}
WATCH = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (e) =>
    window.__violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""

expect.set_options(timeout=60_000)


@dataclass
class Watch:
    """What happened on a page that must not happen."""

    page: Page
    origin: str
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.add_init_script(WATCH)
        page.on("pageerror", lambda error: self.seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("popup", lambda popup: self.seen.append(f"popup: {popup.url}"))
        page.on("console", self._said)
        page.on("framenavigated", lambda frame: self._asked(frame.url))
        page.context.on("request", lambda request: self._asked(request.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.seen.append(f"console: {message.text}")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.origin + "/", "blob:" + self.origin)):
            self.seen.append(f"asked: {url}")

    def check(self) -> None:
        """Fail if anything happened."""
        assert self.page.evaluate("() => window.__violations") == []
        assert self.page.evaluate("() => window.__pwned ?? null") is None
        assert self.page.url.removesuffix("#prompt") == self.origin + "/"
        assert self.seen == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed after each module: while Playwright is open its event loop runs, so nothing else may run one."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def listening() -> Iterator[FakeServer]:
    server = FakeServer().start()
    yield server
    server.stop()


@pytest.fixture
def fake(listening: FakeServer) -> FakeServer:
    """The server, as it is at the start."""
    listening.go.set()  # lets go whatever a failed test held
    listening.reset()
    return listening


@pytest.fixture
def page(browser: Browser, fake: FakeServer) -> Iterator[Page]:
    """An open page of a wide window, watched."""
    yield from watched(browser, fake.url)


def watched(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open the page in a profile of its own, and check at the end that nothing happened that must not."""
    with (
        browser.new_context(viewport=WIDE, **options)
        if "viewport" not in options
        else browser.new_context(**options) as context
    ):
        page = context.new_page()
        watch = Watch(page, url)
        open_page(page, url)
        yield page
        watch.check()


def open_page(page: Page, url: str) -> None:
    """Go to the page and wait until it can be used."""
    page.goto(url)
    expect(page.locator("html[data-ready]")).to_be_attached()


def send(page: Page, text: str) -> None:
    """Write a message and press Enter."""
    prompt = page.get_by_role("textbox", name="Message", exact=True)
    prompt.fill(text)
    prompt.press("Enter")


def ended(page: Page) -> None:
    """Wait until no reply is running."""
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)


@pytest.fixture(scope="module")
def blank(browser: Browser, listening: FakeServer) -> Iterator[Page]:
    """A page for tests of single modules."""
    yield from watched(browser, listening.url)
