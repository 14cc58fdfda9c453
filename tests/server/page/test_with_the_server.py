"""The page and the real server, with the demo model: what both say fits together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

import mixq
from mixq.server.guard import Settings
from tests.server.page.conftest import ended, send, watched
from tests.server.running import Gate, Running, running


@pytest.fixture
def at_demo(browser: Browser, demo: Running) -> Iterator[Page]:
    yield from watched(browser, demo.url)


def ask_exactly(page: Page) -> None:
    page.get_by_label("Temperature").fill("0")


def test_an_answer_its_figures_and_its_experts(at_demo: Page, demo: Running) -> None:
    page = at_demo
    ask_exactly(page)
    send(page, "What is 25 - (4 * 2) + 3?")
    ended(page)
    expect(page.locator(".assistant .body")).to_have_text("25 - (4 * 2) + 3 = 25 - 8 + 3 = 17 + 3 = 20")
    assert float(page.locator("#speed").inner_text()) > 0
    expect(page.locator("#used")).to_contain_text("/ 2,048")
    label = page.locator("#heat").get_attribute("aria-label") or ""
    assert label.startswith("Heat map of 5 layers and 8 experts over ")
    assert "no token" not in label
    expect(page.locator("#facts")).to_contain_text("5 layers, 2 of 8 experts")
    expect(page.get_by_role("slider", name="GPU memory")).to_be_disabled()
    send(page, "Write a Python function that squares a number.")
    ended(page)
    expect(page.locator(".assistant .body").last).to_contain_text("def square(x):")


def test_a_conversation_beyond_the_context(at_demo: Page) -> None:
    send(at_demo, "far " * 3000)
    expect(at_demo.locator(".problem")).to_contain_text("longer than the model’s context")
    expect(at_demo.get_by_role("button", name="Send in a new conversation")).to_be_visible()


def test_stop_frees_the_engine(browser: Browser) -> None:
    with running(model := mixq.load(sequences=2)) as server:
        gate = Gate(model)
        gate.close()
        for page in watched(browser, server.url):
            send(page, "Count from 1 to 30.")
            gate.let(6)
            expect(page.locator(".assistant .body")).to_contain_text("1")
            page.keyboard.press("Escape")
            ended(page)
            gate.open()
            server.wait(server.idle)


def test_another_split_on_a_simulated_accelerator(browser: Browser) -> None:
    with running(lambda options: mixq.load(device="sim", sequences=2, **{"vram": 60_000_000, **options})) as server:
        for page in watched(browser, server.url):
            slider = page.get_by_role("slider", name="GPU memory")
            expect(page.locator("#vram-value")).to_contain_text("60 MB of ")
            slider.press("ArrowRight")
            page.get_by_role("button", name="Reload with this much GPU memory").click()
            expect(page.locator("#vram-note")).to_have_text("Loaded with 200 MB.")
            ask_exactly(page)
            send(page, "What is 1 + 1?")
            ended(page)
            expect(page.locator(".assistant .body")).to_contain_text("1 + 1 = 2")
            expect(page.locator("#hits")).to_contain_text("%")


def test_a_key(browser: Browser) -> None:
    with running(mixq.load(sequences=2), settings=Settings(api_key="s3cret")) as server:
        for page in watched(browser, server.url):
            page.get_by_label("API key").fill("s3cret")
            page.keyboard.press("Enter")
            ask_exactly(page)
            send(page, "What is 1 + 1?")
            ended(page)
            expect(page.locator(".assistant .body")).to_contain_text("1 + 1 = 2")
