"""Settings: what is sent, what is refused at once, and loading the model with another split."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.conftest import ended, open_page, send
from tests.server.page.fake_server import FakeServer


def test_they_are_sent_and_kept(page: Page, fake: FakeServer) -> None:
    for label, value in (("Temperature", "0,7"), ("Top-p", "0.9"), ("Max tokens", "64"), ("Seed", "7")):
        page.get_by_label(label, exact=True).fill(value)
    open_page(page, fake.url)
    fake.say("Hi.")
    send(page, "Hi")
    ended(page)
    sent = {name: fake.asked[0][name] for name in ("temperature", "top_p", "max_tokens", "seed")}
    assert sent == {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "seed": 7}


@pytest.mark.parametrize(
    ("label", "value", "why"),
    [
        ("Temperature", "3", "from 0 to 2"),
        ("Top-p", "0", "above 0 and up to 1"),
        ("Max tokens", "1.5", "a whole number of at least 1"),
        ("Seed", "x", "a whole number of at least 0"),
    ],
)
def test_what_the_server_would_refuse_is_said_at_once(
    page: Page, fake: FakeServer, label: str, value: str, why: str
) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#settings-error")).to_have_text(
        f"{label} must be {why}." if "whole" in why else f"{label} must be a number {why}."
    )
    send(page, "Hi")
    expect(page.locator(".problem")).to_contain_text("A setting is invalid.")
    assert fake.asked == []
    field.fill("")
    fake.say("Hi.")
    page.get_by_role("button", name="Try again").click()
    ended(page)
    expect(page.locator(".assistant .body")).to_have_text("Hi.")


def test_each_conversation_has_its_system_prompt(page: Page, fake: FakeServer) -> None:
    system = page.get_by_label("System prompt")
    system.fill("Be brief.")
    fake.say("A.")
    send(page, "one")
    ended(page)
    page.get_by_role("button", name="New", exact=True).click()
    expect(system).to_have_value("Be brief.")  # a new one begins with the last
    system.fill("")
    fake.say("B.")
    send(page, "two")
    ended(page)
    assert fake.asked[1]["messages"] == [{"role": "user", "content": "two"}]
    page.get_by_role("button", name="one", exact=True).click()
    expect(system).to_have_value("Be brief.")


def choose_memory(page: Page) -> None:
    """Move the slider by one step with the keyboard, and load."""
    page.get_by_role("slider", name="GPU memory").press("ArrowRight")
    expect(page.locator("#vram-value")).to_have_text("8.1 GB of 24.0 GB")
    page.get_by_role("button", name="Reload with this much GPU memory").click()


def test_the_model_is_loaded_with_another_split(page: Page, fake: FakeServer) -> None:
    slider = page.get_by_role("slider", name="GPU memory")
    button = page.locator("#reload")
    expect(button).to_be_disabled()
    choose_memory(page)
    expect(page.locator("#banner")).to_have_text("Loading the model…")
    expect(button).to_have_text("Loading…")
    expect(slider).to_be_disabled()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    assert fake.reloads == [8_100_000_000]
    empty = dict.fromkeys(("path", "layers", "experts", "context", "is_chat", "template", "vram", "vram_total"))
    former = {name: fake.status[name] for name in empty}
    fake.status |= empty  # as it is between two models
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#model")).to_have_text("fake-8x7b")
    fake.status |= {**former, "loading": False, "vram": 8_100_000_000}
    expect(page.locator("#vram-note")).to_have_text("Loaded with 8.1 GB.")
    expect(page.locator("#banner")).to_be_empty()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    expect(slider).to_be_enabled()


def test_a_split_that_does_not_fit_brings_the_former_back(page: Page, fake: FakeServer) -> None:
    choose_memory(page)
    expect(page.locator("#banner")).to_have_text("Loading the model…")
    fake.status |= {"loading": False, "notes": ["8.1 GB do not fit."]}
    expect(page.locator("#vram-note")).to_have_text("Still using 8.0 GB. 8.1 GB do not fit.")
    expect(page.get_by_role("slider", name="GPU memory")).to_have_value("8000000000")


def test_without_an_accelerator_the_slider_says_why(page: Page, fake: FakeServer) -> None:
    fake.status |= {"device": "cpu", "vram": None, "vram_total": None}
    open_page(page, fake.url)
    slider = page.get_by_role("slider", name="GPU memory")
    expect(slider).to_be_disabled()
    expect(slider).to_have_accessible_description("No GPU: the whole model runs on the CPU.")
