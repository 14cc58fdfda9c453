"""For everyone: the keyboard alone, names and roles for screen readers, narrow windows, less motion."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.page.conftest import ended, open_page, send, watched
from tests.server.page.fake_server import FakeServer, pieces

LONG = (
    "word " * 30
    + "\n\n```\n"
    + "x" * 300
    + "\n```\n\n| "
    + " | ".join("abcdefghij")
    + " |\n"
    + "|--" * 10
    + "|\n\n"
    + "y" * 400
)


def focused(page: Page) -> str:
    """Return the name or id of what has the focus."""
    return page.locator(":focus").evaluate("e => e.getAttribute('aria-label') || e.id || e.textContent")


def test_the_keyboard_alone(page: Page, fake: FakeServer) -> None:
    assert focused(page) == "prompt"
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    fake.say("A", hold=True)
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .body")).to_have_text("A")
    assert fake.asked[0]["messages"][0]["content"] == "first line\nsecond line"
    page.keyboard.press("Escape")
    ended(page)
    assert focused(page) == "prompt"
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "Regenerate"
    fake.say("B.")
    page.keyboard.press("Enter")
    ended(page)
    expect(page.locator(".assistant .body")).to_have_text("B.")
    assert focused(page) == "prompt"
    for name in ("Regenerate", "Copy message", "Edit message"):
        page.keyboard.press("Shift+Tab")
        assert focused(page) == name
    page.keyboard.press("Enter")
    assert focused(page) == "Edit message"  # the field
    page.keyboard.press("Escape")
    assert focused(page) == "Edit message"  # the button again
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_tab_goes_through_the_page_in_reading_order(page: Page, fake: FakeServer) -> None:
    fake.say("A.")
    send(page, "one")
    ended(page)
    page.locator(".skip").focus()
    order = [focused(page)]
    while order[-1] != "vram":
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order == [
        "Skip to the message field", "new", "one", "Rename one", "Delete one", "export", "import", "Messages",
        "Copy message", "Edit message", "Copy message", "Regenerate", "prompt", "send", "As a table", "system",
        "temperature", "top_p",
        "max_tokens", "seed", "vram",
    ]  # fmt: skip


def test_enter_that_ends_a_composition_sends_nothing(page: Page, fake: FakeServer) -> None:
    prompt = page.get_by_role("textbox", name="Message", exact=True)
    prompt.fill("にほん")
    prompt.evaluate(
        "e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    expect(prompt).to_have_value("にほん")
    assert fake.asked == []


def test_what_a_screen_reader_finds(page: Page, fake: FakeServer) -> None:
    fake.say("## Title\n\nText.")
    send(page, "one")
    ended(page)
    expect(page.locator("body")).to_match_aria_snapshot(
        """
- link "Skip to the message field"
- navigation "Conversations":
  - button "New"
  - list:
    - listitem:
      - button "one"
      - button "Rename one"
      - button "Delete one"
  - paragraph: Saved in this browser only.
  - button "Export"
  - button "Import"
- main:
  - heading "one" [level=1]
  - paragraph: fake-8x7b
  - status
  - region "Messages":
    - article "Your message":
      - button "Copy message"
      - button "Edit message"
    - article "Reply":
      - heading "Title" [level=4]
      - paragraph: Text.
      - button "Copy message"
      - button "Regenerate"
  - form "New message":
    - textbox "Message"
    - button "Send"
- complementary "Statistics and settings":
  - region "This reply"
  - region "Experts":
    - figure:
      - img /Heat map of 4 layers and 8 experts over \\d+ token/
  - form "Settings":
    - textbox "System prompt"
    - textbox "Temperature"
    - textbox "Top-p"
    - textbox "Max tokens"
    - textbox "Seed"
    - slider "GPU memory"
    - button "Reload with this much GPU memory" [disabled]
  - region "Model"
- log "Finished replies"
"""
    )


def test_a_reply_is_read_out_once_it_is_whole(page: Page, fake: FakeServer) -> None:
    live = page.get_by_role("log", name="Finished replies")
    expect(live).to_have_attribute("aria-live", "polite")
    fake.say("Half ", "and whole.", hold=True)
    send(page, "one")
    expect(page.locator(".assistant .body")).to_have_text("Half and whole.")
    expect(live).to_be_empty()
    fake.go.set()
    expect(live).to_have_text("Half and whole.")


NAMELESS = """
all => all.filter(e => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length))
    .map(e => e.outerHTML)
"""


def test_all_controls_have_names(page: Page, fake: FakeServer) -> None:
    fake.say("```\ncode\n```")
    send(page, "one")
    ended(page)
    nameless = page.locator("button, input, textarea, canvas, summary, progress").evaluate_all(NAMELESS)
    assert nameless == []


CONTRAST = """
names => names.map(([front, back]) => {
    const style = getComputedStyle(document.documentElement);
    const channels = name => style.getPropertyValue(name).trim().match(/\\w\\w/g).map(h => parseInt(h, 16) / 255);
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = name => channels(name).map(linear).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
})
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, fake: FakeServer, scheme: str) -> None:
    pairs = [
        ("--ink", "--paper"), ("--soft", "--paper"), ("--soft", "--side"), ("--accent", "--paper"),
        ("--wrong", "--wrong-back"), ("--on-accent", "--accent"), ("--keyword", "--side"), ("--string", "--side"),
        ("--number", "--side"), ("--comment", "--side"),
    ]  # fmt: skip
    for page in watched(browser, fake.url, color_scheme=scheme):
        ratios = page.evaluate(CONTRAST, pairs)
        assert [pair for pair, ratio in zip(pairs, ratios, strict=True) if ratio < 4.5] == []


@pytest.fixture
def phone(browser: Browser, fake: FakeServer) -> object:
    yield from watched(browser, fake.url, viewport={"width": 360, "height": 640}, has_touch=True)


def test_a_phone_scrolls_in_one_direction(phone: Page, fake: FakeServer) -> None:
    fake.say(*pieces(LONG, 40), hold=True)
    send(phone, "z" * 300)
    expect(phone.locator(".assistant .body")).to_contain_text("yyyy")
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 360
    assert phone.locator("#messages").evaluate("m => m.scrollWidth - m.clientWidth") == 0
    fake.go.set()
    ended(phone)
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 360


def test_a_phone_has_everything_in_drawers(phone: Page, fake: FakeServer) -> None:
    opener = phone.get_by_role("button", name="Statistics and settings")
    expect(phone.get_by_label("Temperature")).to_be_hidden()
    opener.click()
    expect(opener).to_have_attribute("aria-expanded", "true")
    expect(phone.get_by_label("Temperature")).to_be_visible()
    phone.keyboard.press("Escape")
    expect(phone.get_by_label("Temperature")).to_be_hidden()
    expect(opener).to_be_focused()
    opener.click()
    phone.get_by_role("button", name="Close").click()
    expect(phone.get_by_label("Temperature")).to_be_hidden()
    phone.get_by_role("button", name="Conversations").click()
    phone.get_by_role("button", name="New", exact=True).click()
    expect(phone.get_by_role("button", name="New", exact=True)).to_be_hidden()


def test_less_motion_is_respected(browser: Browser, fake: FakeServer) -> None:
    for page in watched(browser, fake.url, reduced_motion="reduce"):
        fake.say("a", "b", hold=True)
        send(page, "one")
        expect(page.locator("#heat-tokens")).to_have_text("2 tokens")
        open_animations = page.evaluate("() => document.getAnimations().length")
        assert open_animations == 0
        fake.go.set()
        ended(page)


def test_a_page_of_one_colour_scheme_follows_the_system(browser: Browser, fake: FakeServer) -> None:
    colours = []
    for scheme in ("light", "dark"):
        with browser.new_context(color_scheme=scheme) as context:  # type: ignore[arg-type]
            page = context.new_page()
            open_page(page, fake.url)
            colours.append(page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor"))
    assert colours == ["rgb(252, 252, 250)", "rgb(21, 25, 26)"]
