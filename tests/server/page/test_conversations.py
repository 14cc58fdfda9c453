"""Conversations kept in the browser: over a reload, renamed, deleted and brought back, exported and imported."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.server.page.conftest import ended, open_page, send
from tests.server.page.fake_server import FakeServer


def talk(page: Page, fake: FakeServer, *questions: str) -> None:
    """Ask each question in a conversation of its own."""
    for question in questions:
        page.get_by_role("button", name="New", exact=True).click()
        fake.say(f"Reply to {question}.")
        send(page, question)
        ended(page)


def titles(page: Page) -> list[str]:
    return page.locator("#conversations .open").all_text_contents()


def test_they_survive_a_reload(page: Page, fake: FakeServer) -> None:
    page.get_by_label("System prompt").fill("Be kind.")
    talk(page, fake, "one", "two")
    page.get_by_role("button", name="one", exact=True).click()
    page.reload()
    expect(page.locator("html[data-ready]")).to_be_attached()
    assert titles(page) == ["two", "one"]
    expect(page.locator("#title")).to_have_text("one")  # the one that was open
    expect(page.locator(".assistant .body")).to_have_text("Reply to one.")
    expect(page.locator(".assistant .figures")).to_contain_text("40 tokens")
    expect(page.get_by_label("System prompt")).to_have_value("Be kind.")


def test_a_reply_that_was_coming_is_kept_over_a_reload(page: Page, fake: FakeServer) -> None:
    fake.say("Half", hold=True)
    send(page, "one")
    expect(page.locator(".assistant .body")).to_have_text("Half")
    page.get_by_role("button", name="Stop").click()
    ended(page)
    page.reload()
    expect(page.locator(".assistant .body")).to_have_text("Half")


def test_an_empty_one_is_not_kept(page: Page, fake: FakeServer) -> None:
    page.get_by_role("button", name="New", exact=True).click()
    page.get_by_role("button", name="New", exact=True).click()
    assert titles(page) == []


def test_rename(page: Page, fake: FakeServer) -> None:
    talk(page, fake, "one")
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Rename one").click()
    field = page.get_by_label("Title of the conversation")
    field.fill("Dropped")
    field.press("Escape")
    assert titles(page) == ["one"]
    page.get_by_role("button", name="Rename one").click()
    field.fill("Greetings")
    field.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Greetings")
    open_page(page, fake.url)
    assert titles(page) == ["Greetings"]


def test_delete_and_undo(page: Page, fake: FakeServer) -> None:
    talk(page, fake, "one", "two")
    page.locator("#conversations li").first.hover()
    page.get_by_role("button", name="Delete two").click()
    assert titles(page) == ["one"]
    page.get_by_role("button", name="Undo").click()
    assert titles(page) == ["two", "one"]
    page.locator("#conversations li").first.hover()
    page.get_by_role("button", name="Delete two").click()
    open_page(page, fake.url)
    assert titles(page) == ["one"]


def test_a_deleted_one_does_not_come_back_with_its_reply(page: Page, fake: FakeServer) -> None:
    talk(page, fake, "one")
    fake.say("More", hold=True)
    send(page, "two")
    expect(page.locator(".assistant .body").last).to_have_text("More")
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete one").click()
    fake.go.set()
    ended(page)
    assert titles(page) == []


def test_export_and_import(page: Page, fake: FakeServer, browser: Browser, tmp_path: Path) -> None:
    talk(page, fake, "one", "two")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    path = tmp_path / "conversations.json"
    download.value.save_as(path)
    data = json.loads(path.read_text())
    assert [each["title"] for each in data["conversations"]] == ["two", "one"]
    with browser.new_context() as context:
        other = context.new_page()
        open_page(other, fake.url)
        other.locator("#import-file").set_input_files(path)
        expect(other.locator("#banner")).to_contain_text("2 conversations imported.")
        assert titles(other) == ["two", "one"]
        expect(other.locator(".assistant .body")).to_have_text("Reply to two.")
        open_page(other, fake.url)
        assert titles(other) == ["two", "one"]
