"""Asking and being answered: streaming, stopping, asking again, and what is said when it fails."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.conftest import ended, open_page, send
from tests.server.page.fake_server import LAYERS, FakeServer, pieces


def test_a_reply_is_shown_while_it_comes(page: Page, fake: FakeServer) -> None:
    fake.say("Four", " is ", "the **an", hold=True)
    send(page, "What is 2 + 2?")
    reply = page.get_by_role("article", name="Reply")
    expect(reply.locator(".body")).to_have_text("Four is the **an")
    expect(reply).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_have_value("")
    fake.go.set()
    ended(page)
    asked = fake.asked[0]
    assert asked["messages"] == [{"role": "user", "content": "What is 2 + 2?"}]
    assert asked["stream"] is True
    assert asked["mixq"] == {"experts": True, "cache": True}
    assert "temperature" not in asked  # left to the model


def test_figures_are_the_engines_own_at_the_end(page: Page, fake: FakeServer) -> None:
    fake.say("Hello.")
    send(page, "Hi")
    ended(page)
    for name, value in (("speed", "20.0"), ("first", "250 ms"), ("hits", "75 %"), ("used", "512 / 2,048")):
        expect(page.locator(f"#{name}")).to_have_text(value)
    expect(page.locator(".assistant .figures")).to_have_text(
        "40 tokens · 20.0 tokens/s · first token after 250 ms · 75 % hits"
    )
    expect(page.locator("#context")).to_have_text("25 % of the context used")


def test_live_figures_come_while_tokens_come(page: Page, fake: FakeServer) -> None:
    fake.say("a", "b", hold=True)
    send(page, "Hi")
    expect(page.locator("#first")).not_to_have_text("–")
    expect(page.locator("#hits")).to_have_text("70 %")  # the server's, until the reply has its own
    fake.go.set()
    ended(page)


def test_prompt_progress_is_shown_before_the_first_token(page: Page, fake: FakeServer) -> None:
    fake.say(hold=True, progress=(256, 1024))
    send(page, "A long one")
    bar = page.get_by_role("progressbar", name="Processing the prompt")
    expect(bar).to_have_attribute("value", "256")
    expect(page.locator("#prefill-text")).to_have_text("256 of 1,024")
    page.keyboard.press("Escape")
    expect(bar).to_be_hidden()


def test_stop_keeps_the_text_and_ends_the_servers_work(page: Page, fake: FakeServer) -> None:
    fake.say("One, two", hold=True)
    send(page, "Count")
    expect(page.locator(".assistant .body")).to_have_text("One, two")
    page.get_by_role("button", name="Stop").click()
    ended(page)
    assert fake.hung_up.wait(10)
    expect(page.locator(".assistant .body")).to_have_text("One, two")
    expect(page.locator(".assistant .figures")).to_contain_text("stopped")


def test_stopped_before_the_first_token_can_be_asked_again(page: Page, fake: FakeServer) -> None:
    fake.say(hold=True)
    send(page, "Hello?")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert")).to_contain_text("Stopped before the first token")
    expect(page.get_by_role("article", name="Reply")).to_have_count(0)
    fake.say("Here.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".assistant .body")).to_have_text("Here.")
    assert fake.asked[1]["messages"] == [{"role": "user", "content": "Hello?"}]


def test_regenerate_replaces_the_last_reply(page: Page, fake: FakeServer) -> None:
    fake.say("First.")
    send(page, "Say something")
    ended(page)
    fake.say("Second.")
    page.get_by_role("button", name="Regenerate").click()
    ended(page)
    expect(page.locator(".assistant .body")).to_have_text(["Second."])
    assert fake.asked[1]["messages"] == fake.asked[0]["messages"]


def test_editing_an_earlier_message_replaces_what_follows(page: Page, fake: FakeServer) -> None:
    for text in ("one", "two"):
        fake.say(f"Reply {text}.")
        send(page, text)
        ended(page)
    fake.say("Reply three.")
    page.get_by_role("button", name="Edit message").first.click()
    field = page.locator(".editor textarea")
    expect(field).to_be_focused()
    expect(page.get_by_text("The messages after it will be deleted.")).to_be_visible()
    field.fill("three")
    field.press("Enter")
    ended(page)
    expect(page.locator(".user .body")).to_have_text(["three"])
    expect(page.locator(".assistant .body")).to_have_text(["Reply three."])
    assert fake.asked[2]["messages"] == [{"role": "user", "content": "three"}]


def test_an_edit_that_is_cancelled_changes_nothing(page: Page, fake: FakeServer) -> None:
    fake.say("Reply.")
    send(page, "one")
    ended(page)
    page.get_by_role("button", name="Edit message").click()
    page.locator(".editor textarea").fill("other")
    page.keyboard.press("Escape")
    expect(page.locator(".user .body")).to_have_text("one")
    assert len(fake.asked) == 1


def test_the_whole_conversation_is_sent(page: Page, fake: FakeServer) -> None:
    page.get_by_label("System prompt").fill("Be brief.")
    fake.say("A.")
    send(page, "one")
    ended(page)
    fake.say("B.")
    send(page, "two")
    ended(page)
    roles = [(message["role"], message["content"]) for message in fake.asked[1]["messages"]]
    assert roles == [("system", "Be brief."), ("user", "one"), ("assistant", "A."), ("user", "two")]


def test_messages_and_code_are_copied(page: Page, fake: FakeServer) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text = "Look:\n\n```python\nx = 1\n```\n"
    fake.say(text)
    send(page, "Code?")
    ended(page)
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == "x = 1"
    page.get_by_role("button", name="Copy message").last.click()
    expect(page.get_by_text("Copied")).to_have_count(2)
    assert page.evaluate("() => navigator.clipboard.readText()") == text


def test_the_heat_map_lights_up_and_says_what_it_shows(page: Page, fake: FakeServer) -> None:
    canvas = page.locator("#heat")
    dark = canvas.evaluate("c => c.toDataURL()")
    expect(canvas).to_have_attribute("aria-label", f"Heat map of {LAYERS} layers and 8 experts: no tokens yet")
    fake.say("a", "b", "c", hold=True)
    send(page, "Hi")
    expect(page.locator("#heat-tokens")).to_have_text("3 tokens")
    lit = canvas.evaluate("c => c.toDataURL()")
    assert lit != dark
    fake.go.set()
    ended(page)
    expect(canvas).to_have_attribute(
        "aria-label",
        "Heat map of 4 layers and 8 experts over 3 tokens; most used is expert 1 of layer 0, with 67 % of the tokens",
    )
    page.get_by_text("As a table").click()
    table = page.get_by_role("table", name="Share of 3 tokens")
    expect(table.get_by_role("row")).to_have_count(1 + LAYERS)
    expect(table.get_by_role("row").nth(1)).to_have_text("033 %67 %67 %33 %0 %0 %0 %0 %")
    canvas.hover(position={"x": 3, "y": 3})
    expect(page.locator("#heat-at")).to_have_text("Layer 0, expert 0: 33 %")


def test_a_dense_model_has_no_map(page: Page, fake: FakeServer) -> None:
    fake.status |= {"experts": 0, "experts_per_token": 0}
    open_page(page, fake.url)
    expect(page.locator("#experts")).to_be_hidden()
    fake.say("Hi.")
    send(page, "Hi")
    ended(page)
    assert fake.asked[0]["mixq"]["experts"] is False


def test_a_base_model_completes(page: Page, fake: FakeServer) -> None:
    fake.status["is_chat"] = False
    open_page(page, fake.url)
    prompt = page.get_by_role("textbox", name="Text to continue")
    fake.say(" upon **a** time")
    prompt.fill("Once")
    prompt.press("Enter")
    ended(page)
    expect(page.locator(".assistant .body")).to_have_text(" upon **a** time")  # no Markdown: it is the text itself
    fake.say(", there")
    page.get_by_role("button", name="Complete").click()
    ended(page)
    assert [asked["prompt"] for asked in fake.asked] == ["Once", "Once upon **a** time"]
    assert fake.asked[0]["max_tokens"] == 256


def test_another_conversation_can_be_read_while_a_reply_comes(page: Page, fake: FakeServer) -> None:
    fake.say("First ", hold=True)
    send(page, "one")
    expect(page.locator(".assistant .body")).to_have_text("First ")
    page.get_by_role("button", name="New").click()
    expect(page.get_by_role("article")).to_have_count(0)
    fake.go.set()
    ended(page)
    expect(page.get_by_role("article")).to_have_count(0)
    page.get_by_role("button", name="one", exact=True).click()
    expect(page.locator(".assistant .body")).to_have_text("First ")
    expect(page.locator(".assistant .figures")).to_contain_text("40 tokens")


QUEUE_FULL = (503, {"message": "16 requests are waiting.", "code": "queue_full"}, {"Retry-After": "3"})
TOO_LONG = (
    400,
    {"message": "The prompt has 9000 tokens; the context has 2048.", "code": "context_length_exceeded"},
    {},
)


def test_a_full_queue_says_when_to_try_again(page: Page, fake: FakeServer) -> None:
    fake.say(refuse=QUEUE_FULL)
    send(page, "Hi")
    alert = page.get_by_role("alert").filter(has_text="busy")
    expect(alert).to_contain_text("16 requests are waiting. Try again in about 3 s.")
    fake.say("Now.")
    alert.get_by_role("button", name="Try again").click()
    expect(page.locator(".assistant .body")).to_have_text("Now.")
    expect(alert).to_have_count(0)


def test_a_conversation_beyond_the_context_can_go_on_elsewhere(page: Page, fake: FakeServer) -> None:
    fake.say("A.")
    send(page, "one")
    ended(page)
    fake.say(refuse=TOO_LONG)
    send(page, "two")
    expect(page.get_by_role("alert").filter(has_text="longer")).to_contain_text("9000 tokens")
    fake.say("B.")
    page.get_by_role("button", name="Send in a new conversation").click()
    ended(page)
    assert fake.asked[-1]["messages"] == [{"role": "user", "content": "two"}]
    expect(page.get_by_role("list").first.get_by_role("listitem")).to_have_count(2)


@pytest.mark.parametrize("how", [{"cut": True}, {"error": {"message": "The server is stopping.", "code": None}}])
def test_a_reply_that_breaks_off_keeps_its_text(page: Page, fake: FakeServer, how: dict[str, object]) -> None:
    fake.say("Half a", **how)
    send(page, "Hi")
    expect(page.locator(".problem")).to_be_visible()
    expect(page.locator(".assistant .body")).to_have_text("Half a")
    expect(page.locator(".assistant .figures")).to_contain_text("interrupted")
    fake.say("Whole.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".assistant .body")).to_have_text(["Whole."])


def test_an_unanswered_question_and_the_next_are_one_turn(page: Page, fake: FakeServer) -> None:
    fake.say(refuse=QUEUE_FULL)
    send(page, "one")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    fake.say("Both.")
    send(page, "two")
    ended(page)
    assert fake.asked[1]["messages"] == [{"role": "user", "content": "one\n\ntwo"}]


def test_a_server_that_is_gone_is_looked_for(page: Page, fake: FakeServer) -> None:
    page.route("**/mixq/status", lambda route: route.abort())
    page.route("**/v1/**", lambda route: route.abort())
    send(page, "Hi")
    expect(page.locator(".problem")).to_contain_text("The server does not respond.")
    expect(page.locator("#banner")).to_have_text("The server does not respond. Trying again…")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.unroute_all()
    expect(page.locator("#banner")).to_be_empty()
    fake.say("Back.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".assistant .body")).to_have_text("Back.")


def test_a_server_with_a_key_asks_for_it(page: Page, fake: FakeServer) -> None:
    fake.key = "s3cret"
    open_page(page, fake.url)
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Enter")
    expect(field).to_have_value("")
    field.fill("s3cret")
    field.press("Enter")
    expect(page.locator("#banner")).to_be_empty()
    fake.say("Hello.")
    send(page, "Hi")
    expect(page.locator(".assistant .body")).to_have_text("Hello.")
    assert "s3cret" not in page.evaluate("() => JSON.stringify(localStorage) + location.href")


def test_a_long_reply_is_followed_unless_the_reader_has_gone_up(page: Page, fake: FakeServer) -> None:
    fake.say(*pieces("line\n\n" * 60), hold=True)
    send(page, "Hi")
    expect(page.locator(".assistant .body p")).to_have_count(60)
    messages = page.locator("#messages")
    gap = "m => m.scrollHeight - m.scrollTop - m.clientHeight"
    assert messages.evaluate(gap) < 2
    messages.evaluate("m => { m.scrollTop = 0; }")
    fake.go.set()
    ended(page)
    assert messages.evaluate("m => m.scrollTop") == 0
