"""Forty hostile texts as output, prompt, system prompt, title, file and server's words: shown, never obeyed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.page.conftest import ended, open_page, send, watched
from tests.server.page.fake_server import FakeServer, pieces
from tests.server.page.hostile import HOSTILE

TEXTS = [text for text, _ in HOSTILE]
SAFE_LINKS = """
links => links.every(a => /^(https?:|mailto:)/.test(a.href) && a.rel === "noopener noreferrer" && a.target === "_blank")
"""
LOADS = (
    "script:not([src^='/page/']), img, iframe, object, embed, link:not([href^='/page/']), base, style, form[action], "
    "meta[http-equiv], video, audio"
)
ATTRIBUTES = """
all => all.flatMap(e => [...e.attributes]).filter(a => /^on|^style$/i.test(a.name))
    .filter(a => a.ownerElement.id !== "prompt" && a.ownerElement.id !== "heat").length
"""


@pytest.fixture(scope="module")
def shared(browser: Browser, listening: FakeServer) -> Iterator[Page]:
    """One page for all texts: what one of them did would show in the next, too."""
    listening.reset()
    yield from watched(browser, listening.url)


def harmless(page: Page) -> None:
    """Fail if anything of the page's text has become more than text."""
    assert page.evaluate("() => window.__pwned ?? null") is None
    assert page.evaluate("() => window.__violations") == []
    assert page.locator(LOADS).count() == 0
    assert page.locator("#messages a").evaluate_all(SAFE_LINKS)
    assert page.locator("*").evaluate_all(ATTRIBUTES) == 0


def lines(text: str) -> str:
    """Return what of a text is seen, white space as one space."""
    return " ".join(text.replace("\u0000", "\ufffd").split())


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_as_output_prompt_system_prompt_and_title(shared: Page, listening: FakeServer, number: int) -> None:
    page, fake, (text, expected) = shared, listening, HOSTILE[number]
    fake.reset()
    page.get_by_role("button", name="New", exact=True).click()
    page.get_by_label("System prompt").fill(text)
    fake.say(*pieces(text, 3))
    send(page, text)
    ended(page)
    typed = page.locator(".user .body").evaluate("e => e.textContent")
    shown = page.locator(".assistant .body").evaluate("e => e.textContent")
    assert typed == text
    assert lines(expected or text).replace("\ufffd", "\0") in lines(shown).replace("\ufffd", "\0")
    assert fake.asked[0]["messages"] == [{"role": "system", "content": text}, {"role": "user", "content": text}]
    title = page.locator("#title").evaluate("e => e.textContent")
    assert lines(title).removesuffix("…") in lines(text)
    assert len(title) > 1
    harmless(page)


def test_as_imported_file(page: Page) -> None:
    conversations: list[dict[str, Any]] = [
        {
            "title": text,
            "system": text,
            "updated": i,
            "messages": [{"role": "user", "content": text, "onclick": "x"}, {"role": "assistant", "content": text}],
            "__proto__": {"polluted": True},
            "id": text,
        }
        for i, text in enumerate(TEXTS)
    ]
    data = {"format": "mixq-conversations", "version": 1, "conversations": conversations, "__proto__": {"polluted": 1}}
    give_file(page, json.dumps(data))
    expect(page.locator("#banner")).to_contain_text("40 conversations imported.")
    rows = page.locator("#conversations .open")
    expect(rows).to_have_count(40)
    for i, text in enumerate(reversed(TEXTS)):  # newest first
        rows.nth(i).evaluate("row => row.click()")
        assert page.locator("#title").evaluate("e => e.textContent") == text
        assert page.locator(".user .body").evaluate("e => e.textContent") == text
        assert page.get_by_label("System prompt").input_value() == text.replace("\r\n", "\n")
    assert page.evaluate("() => ({}).polluted ?? null") is None
    harmless(page)


def test_titles_typed_by_the_user(page: Page, fake: FakeServer) -> None:
    fake.say("Hello.")
    send(page, "Hi")
    ended(page)
    for text in TEXTS[:6]:
        row = page.locator("#conversations li")
        row.hover()
        row.get_by_role("button", name="Rename").click()
        page.get_by_label("Title of the conversation").fill(text)
        page.keyboard.press("Enter")
        expect(page.locator("#title")).to_have_text(text)
    harmless(page)


def test_as_words_of_the_server(page: Page, fake: FakeServer) -> None:
    everything = " ".join(TEXTS)
    fake.status |= {
        "model": everything,
        "path": everything,
        "template": everything,
        "notes": [everything],
        "device": everything,
    }
    open_page(page, fake.url)
    expect(page.locator("#notes")).to_contain_text("<script>")
    fake.say(refuse=(400, {"message": everything, "code": everything}, {}))
    send(page, "Hi")
    expect(page.locator(".problem")).to_contain_text("<script>")
    fake.say("x", error={"message": everything, "code": None})
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".problem")).to_contain_text("<script>")
    harmless(page)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<script>", "not JSON"),
        ("[]", "not an export of conversations from this page"),
        ('{"format": "mixq-conversations", "version": 2, "conversations": []}', "written by a newer mixq"),
        ('{"format": "mixq-conversations", "version": 1, "conversations": [null]}', "Conversation 1"),
        (
            '{"format": "mixq-conversations", "version": 1, "conversations": [{"messages": [{"role": "system"}]}]}',
            "message 1",
        ),
        ('{"format": "mixq-conversations", "version": 1, "conversations": [{"title": {}, "messages": []}]}', "title"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_files_that_are_not_ours(page: Page, text: str, why: str) -> None:
    give_file(page, text)
    expect(page.locator("#banner")).to_contain_text("Nothing was imported.")
    expect(page.locator("#banner")).to_contain_text(why)
    expect(page.locator("#conversations li")).to_have_count(0)


def give_file(page: Page, text: str) -> None:
    """Import a file."""
    page.locator("#import-file").set_input_files(
        {"name": "c.json", "mimeType": "application/json", "buffer": text.encode()}
    )


LONG = {
    "stars": "*" * 20000 + "x",
    "brackets": "[" * 20000,
    "ticks": "`a``b" * 4000,
    "quotes": "> " * 5000 + "x",
    "lists": "- " * 5000 + "x",
    "open": "*a **b " * 3000,
    "nested": "*a " * 3000 + "b* " * 3000,
    "table": "|a" * 8000 + "\n" + "|-" * 8000,
    "tildes": "~~" * 9000,
    "images": "![" * 9000 + "](" * 9000,
    "spaces": " " * 30000 + "x\n" * 20,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_texts_that_would_take_long_or_go_deep(shared: Page, listening: FakeServer, text: str) -> None:
    found = shared.evaluate(
        """async text => {
            const { MarkdownView } = await import("/page/markdown.js");
            const root = document.createElement("div");
            new MarkdownView(root).update(text);
            let deepest = 0;
            for (let level = [root]; level.length; deepest += 1) level = level.flatMap(e => [...e.children]);
            return { deepest, text: root.textContent.length };
        }""",
        text,
    )
    assert found["text"] > 0
    assert found["deepest"] < 60
