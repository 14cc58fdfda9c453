"""`mixq chat` in a real terminal (tmux) with the demo model: what a user types, and the screens that follow."""

from __future__ import annotations

import json
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from os import kill
from pathlib import Path

import pytest

from mixq.chat import saved_session
from mixq.chat.history import history_file
from mixq.chat.safe_text import harmless
from mixq.cli.loading import quantized_demo
from tests.chat.tmux import Tmux, mixq

if shutil.which("tmux") is None:  # pragma: no cover
    raise RuntimeError("these tests drive a real terminal: install tmux")

EXPRESSION = "What is 25 - (4 * 2) + 3?"
WORKED = "25 - (4 * 2) + 3 = 25 - 8 + 3 = 17 + 3 = 20"
LONG = ("--temperature", "5", "--seed", "1", "--max-tokens", "1500")  # says nonsense for as long as it may

Open = Callable[..., Tmux]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantize the demo model once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXQ_HOME", str(tmp_path_factory.mktemp("demo")))
        return quantized_demo()


@pytest.fixture
def chat(demo: Path) -> Iterator[Open]:
    """Open chats that have come to their prompt, and close them."""
    windows: list[Tmux] = []

    def begin(*arguments: str, columns: int = 80, rows: int = 24, **environment: str) -> Tmux:
        name = saved_session.paths.store() / "mixtral-demo"
        name.parent.mkdir(exist_ok=True)
        if not name.exists():
            name.symlink_to(demo)
        window = mixq("chat", name.name, *arguments, columns=columns, rows=rows, environment=environment)
        windows.append(window)
        window.wait_for("^> ?$")
        return window

    yield begin
    for window in windows:
        window.close()


def test_a_conversation(chat: Open) -> None:
    window = chat("--temperature", "0")
    window.wait_for("/help *$")
    first = window.screen().splitlines()
    assert re.fullmatch(r"mixtral-demo · 10\.5 MB on the CPU \(1 thread\) · RAM [\d.]+ MB · context 2048", first[0])
    assert first[1].startswith("template mistral-v1: ")
    assert first[2] == "/help: commands · Alt-Enter: new line · Ctrl-C: stop the reply · Ctrl-D: quit"
    assert first[4] == ">"
    assert re.fullmatch(r"RAM [\d.]+ MB of [\d.]+ MB planned · context 0/2048 · /help", first[-1])
    window.say(EXPRESSION)
    window.wait_for("tokens in")
    screen = window.wait_for("^> ?$").splitlines()
    assert screen[4:6] == [f"> {EXPRESSION}", WORKED]
    assert re.fullmatch(
        r"\d+ tokens in \([\d.]+/s\) · 34 out \([\d.]+/s\) · first \d\.\d\d s · context 57/2048", screen[6]
    )
    assert screen[7:9] == ["", ">"]
    assert re.fullmatch(r"[\d.]+/s in · [\d.]+/s out · first [\d.]+ s · RAM [\d.]+ MB · context 57/2048", screen[-1])
    window.say("Thank you")
    window.wait_for("tokens in", 2)
    window.wait_for("^> ?$")
    window.say("/stats")
    assert re.search(r"^of them cached +5[67]$", window.wait_for("^memory of this process"), re.MULTILINE)
    window.press("C-d")
    assert window.exit_code() == 0


def test_message_of_several_lines(chat: Open) -> None:
    window = chat("--temperature", "0")
    window.say('"""')
    window.say("What is")
    window.wait_for("^… ?$")
    window.say('25 - (4 * 2) + 3?"""')
    assert '> """\n… What is\n… 25 - (4 * 2) + 3?"""\n' in window.wait_for("tokens in")
    window.wait_for("^> ?$")
    window.type("first")
    window.press("M-Enter")
    window.say("second")
    assert "> first\n… second\n" in window.wait_for("tokens in", 2)
    window.wait_for("^> ?$")
    window.paste("/pasted\nover two lines")
    screen = window.wait_for("over two lines")
    assert "> /pasted\n… over two lines" in screen
    assert screen.count("tokens in") == 2  # a paste is not sent by itself
    window.press("C-c")
    window.wait_for("^> ?$")
    window.press("Up")
    assert "> first\n… second" in window.wait_for("^… second$", 2)


def test_tab_completes_commands_and_names(chat: Open) -> None:
    window = chat("--temperature", "0")
    window.say("Hello")
    window.wait_for("tokens in")
    window.say("/save my-trip")
    window.wait_for("Saved:")
    window.wait_for("^> ?$")
    window.type("/lo")
    window.wait_for("continue a saved one")  # the menu
    window.press("Tab")
    window.wait_for("^> /load")
    window.type(" my")
    window.wait_for("^ +my-trip *$")
    window.press("Tab", "Enter", "Enter")
    window.wait_for("Loaded: 1 turn, ")


def test_ctrl_c_stops_the_reply_and_keeps_it(chat: Open) -> None:
    window = chat(*LONG, "--no-history")
    window.say("Tell me a story")
    window.wait_for("story\n.{20}")
    window.press("C-c")
    screen = window.wait_for(r"\[stopped\]")
    assert int(re.search(r"(\d+) out", window.wait_for("out"))[1]) < 1500  # type: ignore[index]
    assert "^C" not in screen
    window.wait_for("^> ?$")
    window.say("/regen")
    window.wait_for(r"^> /regen\n.{20}")
    window.press("C-c")
    window.wait_for(r"\[stopped\]", 1)
    window.wait_for("^> ?$")
    window.type("half a thought")
    window.wait_for("half a thought")
    window.press("C-c")
    window.wait_for("^> ?$")
    window.press("C-c")
    window.wait_for("Press Ctrl-C again")
    window.press("C-c")
    assert window.exit_code() == 0
    assert not history_file().exists()


def test_what_is_typed_during_a_reply_waits_for_the_prompt(chat: Open) -> None:
    window = chat(*LONG)
    window.say("Tell me a story")
    window.wait_for("story\n.{20}")
    window.type("/set top_k 7")
    window.press("C-c")
    window.wait_for(r"\[stopped\]")
    assert "> /set top_k 7" in window.wait_for("^> /set top_k 7")
    assert window.history().count("/set top_k 7") == 1


def test_sessions_come_back(chat: Open, tmp_path: Path) -> None:
    window = chat("--temperature", "0", "--system", "Be brief.")
    window.say(EXPRESSION)
    window.wait_for("tokens in")
    window.say(f"/save {tmp_path}/sums.json")
    window.wait_for("Saved:")
    window.wait_for("^> ?$")
    saved = json.loads((tmp_path / "sums.json").read_text())
    assert [message["content"] for message in saved["messages"]] == [EXPRESSION, WORKED]
    assert stat.S_IMODE((tmp_path / "sums.json").stat().st_mode) == 0o600
    window.press("C-d")
    assert window.exit_code() == 0
    window = chat("--temperature", "0")
    window.say(f"/load {tmp_path}/sums.json")
    assert f"> {EXPRESSION}\n{WORKED}\nLoaded: 1 turn, " in window.wait_for("Loaded: ")
    window.say("/system")
    window.wait_for("system prompt: Be brief.")
    window.say("Thanks")
    window.wait_for("tokens in")
    window.say("/stats")
    cached = re.search(r"of them cached +(\d+)", window.wait_for("of them cached"))
    assert cached
    assert int(cached[1]) > 50  # /load has run it already
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600
    assert "+Thanks" in history_file().read_text()


def test_hostile_session_shows_its_escape_sequences(chat: Open, tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m a\rb\x08 \u202eevil"
    messages = (saved_session.Message("user", hostile), saved_session.Message("assistant", f"`{hostile}`\n\n{hostile}"))
    saved_session.save(tmp_path / "x.json", saved_session.SavedSession("\x1bm", "t", "", {}, messages))
    window = chat()
    window.say(f"/load {tmp_path}/x.json")
    screen = window.wait_for("Loaded: ")
    assert screen.count(r"\x1b]0;owned\x07\x1b[2J\x9b31m a\rb\x08 \u202eevil") == 3
    assert "conversation with \\x1bm" in screen


def test_experts_are_drawn(chat: Open) -> None:
    window = chat("--temperature", "0")
    window.say(EXPRESSION)
    window.wait_for("tokens in")
    window.say("/experts")
    screen = window.wait_for("busiest: expert")
    assert "34 tokens · 5 layers × 8 experts: columns are layers" in screen
    assert len(re.findall(r"^  \d [█▓▒░ ]{2} ", screen, re.MULTILINE)) == 8
    assert "\x1b[38;" in window.coloured()


def test_without_colour(chat: Open) -> None:
    window = chat("--temperature", "0", NO_COLOR="1")
    window.say(EXPRESSION)
    window.wait_for("tokens in")
    window.say("/experts")
    window.wait_for("busiest: expert")
    assert re.search(r"█|▓", window.screen())
    assert not re.search(r"\x1b\[[0-9;]*[34][0-8]", window.coloured())


def test_dumb_terminal(chat: Open) -> None:
    window = chat("--temperature", "0", TERM="dumb")
    window.say(EXPRESSION)
    window.wait_for("tokens in")
    screen = window.wait_for("^> ?$").splitlines()
    assert f"> {EXPRESSION}" in screen
    assert WORKED in screen
    assert "\x1b" not in window.coloured()


def test_tiny_window(chat: Open) -> None:
    window = chat("--temperature", "0", columns=20, rows=5)
    window.wait_for("^ctx 0% · /help$")
    window.say("Hello")
    window.wait_for(r"^out [\d.]+/s · ctx 1%$", 2)
    window.type("/")
    window.wait_for("^> /")
    window.press("C-c")
    window.say("/experts")
    assert "too small" not in window.wait_for("^> ?$")
    assert "Hello! How can I help you?" in window.history().replace("\n", " ")


def test_window_that_changes_while_a_reply_comes(chat: Open) -> None:
    window = chat(*LONG)
    window.say("Tell me a story")
    window.wait_for("story\n.{20}")
    window.resize(50, 12)
    window.resize(100, 30)
    window.wait_for("tokens in")
    whole = window.history()
    assert whole.count("Tell me a story") == 1
    assert whole.count("template mistral-v1") == 1


def test_termination_leaves_the_terminal_as_it_was(chat: Open) -> None:
    for busy in (False, True):
        window = chat(*LONG)
        if busy:
            window.say("Tell me a story")
            window.wait_for("story\n.{20}")
        kill(window.pid(), signal.SIGTERM)
        assert window.exit_code() == 143
        assert "Traceback" not in window.history()


def test_base_model_completes(chat: Open) -> None:
    window = chat("--template", "none", "--temperature", "0", "--max-tokens", "8")
    screen = window.screen()
    assert "A base model: it continues your text" in screen
    window.say("What is 3 + 4")
    window.wait_for("8 out|tokens in")


def test_model_is_changed_and_comes_back(chat: Open, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, saved_session.paths.store() / "small")
    damaged = shutil.copytree(demo, tmp_path / "damaged")
    (damaged / "tokenizer.model").write_bytes(b"nothing")
    window = chat("--temperature", "0")
    window.say("Hello")
    window.wait_for("tokens in")
    window.say("/model small")
    window.wait_for("^small · 10.5 MB on the CPU")
    window.wait_for("^> ?$")
    window.say(f"/model {damaged}")
    window.wait_for("loading the previous one again")
    window.wait_for("^> ?$")
    window.say(EXPRESSION)
    window.wait_for(rf"^{re.escape(WORKED)}$")
    window.say("/model nothere")
    window.wait_for("neither a folder nor a model")


def test_editor_changes_the_last_message(chat: Open, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/4 \\* 2/1 + 1/" "$1"\n')
    editor.chmod(0o755)
    window = chat("--temperature", "0", EDITOR=str(editor))
    window.say(EXPRESSION)
    window.wait_for("tokens in")
    window.say("/edit")
    window.wait_for("tokens in", 2)
    assert "What is 25 - (1 + 1) + 3?" in window.screen()


HOSTILE = (
    "\x1b]0;owned\x07",
    "\x1b]8;;http://evil/\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x1b[2J\x1b[H",
    "\x1b[?1049h",
    "\x1bc",
    "\x9b2J",
    "\x9d0;owned\x9c",
    "\x1bP+q544e\x1b\\",
    "rm -rf /\rls -l   ",
    "abc\x08\x08\x08xyz",
    "\u202eevil\u202c",
    "\x0e\x0f\x00\x7f\x05",
)


@pytest.mark.parametrize("arguments", [(), ("--plain",)])
def test_escape_sequences_of_a_model_are_shown(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(HOSTILE))
    script = Path(__file__).with_name("hostile_chat.py")
    window = Tmux(sys.executable, str(script), str(tmp_path / "texts.json"), *arguments, rows=60)
    try:
        window.wait_for("^> ?$")
        window.say("go")
        window.wait_for("tokens in")
        screen = window.wait_for("^> ?$")
        for text in HOSTILE:
            assert harmless(text).rstrip() in screen.replace("\n", ""), text
        assert "owned" not in window.title()
    finally:
        window.close()
