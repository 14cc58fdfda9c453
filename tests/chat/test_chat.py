"""Commands and turns of a chat, without a terminal and with a model that echoes."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest

from mixq.chat import saved_session
from mixq.chat.chat import Chat
from mixq.chat.input import Interrupted
from mixq.chat.state import Loaded
from mixq.errors import ModelFileError
from tests.chat.fakes import EchoModel, FakeModels, FakeTerminal, Typed, talk


def test_turns_are_one_conversation() -> None:
    over = talk("one", "", "   ", "two", temperature=0.5)
    assert over.said == [["one"], ["one", "[one]", "two"]]
    assert over.model.asked[-1][1]["temperature"] == 0.5
    assert over.terminal.replies == ["[one]", "[two]"]
    assert "context 5/64" in over.terminal.talk


def test_what_is_said_first() -> None:
    first = talk().terminal.talk.splitlines()
    assert first[0].startswith("echo · 1.0 kB on the CPU (1 thread)")
    assert first[0].endswith("context 64")
    assert first[1] == "template mistral-v1: it says\\x1b[31m so"
    assert first[2].startswith("/help: commands")


def test_system_text_stands_first_and_survives_clear() -> None:
    assert talk("one", system="Be brief.").said == [["Be brief.", "one"]]
    assert talk("one", "/system Be kind.", "two").said[-1] == ["Be kind.", "one", "[one]", "two"]
    assert talk("one", "/clear", "two", system="Be brief.").said[-1] == ["Be brief.", "two"]
    assert talk("/system -", "one", system="Be brief.").said == [["one"]]


def test_regen_asks_again_with_the_next_seed() -> None:
    over = talk("/regen", "one", "/regen", "/regen", "two", seed=7)
    assert over.said == [["one"], ["one"], ["one"], ["one", "[one]", "two"]]
    assert [options["seed"] for _, options in over.model.asked] == [7, 8, 9, 7]
    assert "No reply to replace" in over.terminal.talk
    assert talk("a", "/regen", seed=2**63 - 1).model.asked[-1][1]["seed"] == 0


def test_regen_at_temperature_0_says_that_nothing_will_change() -> None:
    assert "is always the same" in talk("one", "/regen", temperature=0).terminal.talk
    assert "is always the same" not in talk("one", "/regen", temperature=0.5).terminal.talk


def test_edit_changes_the_last_message_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.delenv("VISUAL", raising=False)
    over = talk("one", "two", "/edit", "three", "four")
    assert over.prompt.defaults == ["", "", "", "two", "", ""]
    assert over.said[2:] == [["one", "[one]", "three"], ["one", "[one]", "three", "[three]", "four"]]
    for nothing in ("", Interrupted, EOFError):
        over = talk("one", "/edit", nothing, "two")
        assert over.said[-1] == ["one", "[one]", "two"]
        assert "Nothing was changed" in over.terminal.talk
    assert "No message to change" in talk("/edit").terminal.talk


def test_edit_that_cannot_be_answered_leaves_the_conversation_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.delenv("VISUAL", raising=False)
    assert talk("one", "/edit", "too long", "two").said[-1] == ["one", "[one]", "two"]


def test_interrupt_stops_the_reply_and_keeps_its_text() -> None:
    over = talk("stop me", "two")
    assert over.said[-1] == ["stop me", "[", "two"]
    assert "[stopped]" in over.terminal.talk


def test_turn_that_fails_is_shown_and_forgotten() -> None:
    over = talk("one", "too long", "two")
    assert over.said[-1] == ["one", "[one]", "two"]
    assert "Error: The prompt has 99 tokens" in over.terminal.talk


def test_turn_without_a_reply_is_forgotten() -> None:
    over = talk("say nothing", "two")
    assert over.said[-1] == ["two"]
    assert "[no reply]" in over.terminal.talk


def test_commands_are_not_said_to_the_model() -> None:
    over = talk("/help", "/stats", "/hlep", "/", "/exit", "never said")
    assert over.model.asked == []
    for words in ("/regen", "none yet", "kv cache: 1.0 kB", "Did you mean '/help'"):
        assert words in over.terminal.talk
    assert talk("//help me").said == [["/help me"]]
    assert talk("/usr/bin is what?").said == [["/usr/bin is what?"]]


def test_ctrl_c_at_the_prompt_leaves_at_the_second() -> None:
    over = talk(Interrupted, "one", Interrupted, Interrupted, "never said")
    assert over.said == [["one"]]
    assert over.terminal.talk.count("Press Ctrl-C again") == 2


def test_what_the_model_says_besides_comes_after_the_reply_and_harmless() -> None:
    over = talk("notice")
    assert over.terminal.replies == ["[notice]"]
    assert "Warning: the cache shrank\\x1b[2J\n" in over.terminal.talk


def test_full_context_is_said_with_what_to_do() -> None:
    warned = talk("fill").terminal.talk
    assert "Warning: the context is 94% full: 4 of 64 tokens are left." in warned
    assert "--context 128" in warned
    assert "Warning" not in talk("one").terminal.talk


def test_set_shows_changes_and_goes_back() -> None:
    over = talk("/set top-k 5", "/set temperature", "one", "/set top_k default", "two", temperature=0.5)
    assert [options.get("top_k") for _, options in over.model.asked] == [5, None]
    assert "temperature: 0.5\n" in over.terminal.talk
    for line, words in (
        ("/set temprature 1", "Did you mean 'temperature'"),
        ("/set temperature hot", "must be a number"),
        ("/set temperature -1", "from 0 to 100"),
        ("/set top_k 1.5", "whole number"),
        ("/set top_p nan", "from 0 to 1"),
    ):
        over = talk(line, "one", temperature=0.5)
        assert words in over.terminal.talk
        assert over.model.asked[0][1]["temperature"] == 0.5
    asked = talk("/set stop \\n\\nUser:", "/set seed 3", "/set seed none", "one", seed=9).model.asked[0][1]
    assert (asked["stop"], asked["seed"]) == (("\n\nUser:",), None)


def test_experts_draws_the_last_reply() -> None:
    over = talk("/experts", "one", "/experts")
    assert "No reply yet" in over.terminal.talk
    assert "2 tokens · 2 layers × 4 experts" in over.terminal.talk
    assert "busiest: expert 0 of layer 0, for 100% of the tokens" in over.terminal.talk
    assert over.model.asked[0][1]["experts"] is True
    dense = talk("one", "/experts", model=EchoModel(experts=0))
    assert "is dense" in dense.terminal.talk
    assert "experts" not in dense.model.asked[0][1]


def test_base_model_goes_on_from_the_text() -> None:
    over = talk("Once upon", "a time", "/system x", "/regen", model=EchoModel(is_chat=False), system="")
    assert "instead of answering" in over.terminal.talk
    assert over.said == [["Once upon"], ["Once upon[Once upon]\na time"], ["Once upon[Once upon]\na time"]]
    assert all(options["continues_text"] for _, options in over.model.asked)
    assert "no system prompt" in over.terminal.talk


def test_save_and_load_keep_everything() -> None:
    first = talk("/system Be kind.", "/set top_k 5", "one", "two", "/save mine", temperature=0.5, seed=3)
    path = saved_session.folder() / "mine.json"
    assert json.loads(path.read_text())["version"] == 1
    assert f"Saved: {path}" in first.terminal.talk
    over = talk("/load mine", "three", temperature=1.0)
    assert over.said[-1] == ["Be kind.", "one", "[one]", "two", "[two]", "three"]
    options = over.model.asked[-1][1]
    assert (options["temperature"], options["top_k"], options["seed"]) == (0.5, 5, 3)
    assert over.terminal.replies == ["[one]", "[two]", "[three]"]
    assert "Loaded: 2 turns" in over.terminal.talk
    read = over.model.asked[0]
    assert read[1]["max_tokens"] == 0
    assert read[0][0].content == "<system>Be kind.<user>one<assistant>[one]<user>two<assistant>[two]<user>"
    assert over.terminal.progressed[0][0] == "reading the conversation"


def test_save_does_not_replace_another_conversation_unasked() -> None:
    talk("one", "/save mine")
    over = talk("two", "/save mine")
    assert "exists already" in over.terminal.talk
    assert [m.content for m in saved_session.load(saved_session.session_path("mine")).messages] == ["one", "[one]"]
    over = talk("two", "/save -f mine", "three", "/save")
    assert "Error" not in over.terminal.talk
    saved = saved_session.load(saved_session.session_path("mine")).messages
    assert [m.content for m in saved] == ["two", "[two]", "three", "[three]"]
    assert "Nothing to save" in talk("/save mine").terminal.talk


def test_save_without_a_name_finds_one(tmp_path: Path) -> None:
    over = talk("one", "/save", "two", "/save", f"/save {tmp_path}/a b.json")
    assert len(saved_session.names()) == 1
    assert len(saved_session.load(tmp_path / "a b.json").messages) == 4
    assert "Error" not in over.terminal.talk


def test_what_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "newer.json").write_text('{"format": "mixq-session", "version": 2}')
    talk("a", "/save long")
    path = saved_session.session_path("long")
    path.write_text(path.read_text().replace("[a]", "[too long]"))
    over = talk("/set top_k 5", "one", f"/load {tmp_path}/newer.json", "/load nowhere", "/load", "/load -", "two")
    assert over.said[-1] == ["one", "[one]", "two"]
    assert over.model.asked[-1][1]["top_k"] == 5
    assert over.terminal.talk.count("Error: ") == 4
    assert "newer mixq" in over.terminal.talk
    assert "/load needs a name" in over.terminal.talk


def test_load_that_does_not_fit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    talk("a", "/save other")
    monkeypatch.setattr("tests.chat.fakes.EchoSession.answer", _too_long)
    over = talk("/set top_k 5", "one", "/load other", "two")
    assert "the context holds 64" in over.terminal.talk
    assert over.said[-1] == ["one", "[one]", "two"]
    assert over.model.asked[-1][1]["top_k"] == 5


def _too_long(*_: object, **__: object) -> None:
    raise ModelFileError("The prompt has 99 tokens; the context holds 64.")


def test_load_dash_goes_back_to_what_was_left() -> None:
    over = talk("one", "/clear", "two", "/load -", "three")
    assert over.said[-1] == ["one", "[one]", "three"]
    over = talk("one", "/clear", "two", "/load -", "/load -", "three")
    assert over.said[-1] == ["two", "[two]", "three"]


def test_loaded_text_is_shown_harmless(tmp_path: Path) -> None:
    talk("one", f"/save {tmp_path}/x.json")
    text = (tmp_path / "x.json").read_text().replace('"one"', r'"\u001b]0;owned\u0007\u009b"')
    (tmp_path / "x.json").write_text(text)
    shown = talk(f"/load {tmp_path}/x.json").terminal.talk
    assert r"> \x1b]0;owned\x07\x9b" in shown
    assert "\x1b" not in shown


def test_model_is_changed_in_the_middle_of_a_conversation() -> None:
    over = talk("/model", "one", "/model mixtral", "two")
    assert "in the store: mixtral, odd\\x1bname" in over.terminal.talk
    assert over.model.closed
    assert over.chat.state.loaded.name == "mixtral"
    assert over.said == [["one"]]
    new = over.chat.state.loaded.model
    assert [m.content for m in new.asked[0][0]] == ["one", "[one]", "two"]  # type: ignore[attr-defined]


def test_former_model_is_let_go_before_the_next_is_loaded() -> None:
    gone: list[bool] = []

    class Watching(FakeModels):
        def load(self, name: str | None) -> Loaded:
            gone.append(former() is None)
            return super().load(name)

    def first() -> Loaded:
        return Loaded("echo", EchoModel(), {})  # type: ignore[arg-type]

    chat = Chat(first(), Watching(), FakeTerminal())  # type: ignore[arg-type]
    former = weakref.ref(chat.state.loaded.model)
    chat.run(Typed("one", "/experts", "/stats", "/regen", "/model mixtral", "two").read)
    assert gone == [True]


def test_model_that_cannot_be_loaded_leaves_the_one_before() -> None:
    over = talk("one", "/model nowhere", "two")
    assert not over.model.closed
    assert over.said[-1] == ["one", "[one]", "two"]
    over = talk("one", "/model broken", "two")
    assert "Error: a shard is damaged." in over.terminal.talk
    assert over.models.loaded == ["echo"]
    assert over.chat.state.loaded.name == "echo"
    assert [m.content for m in over.chat.state.loaded.model.asked[0][0]] == ["one", "[one]", "two"]  # type: ignore[attr-defined]


def test_conversation_waits_where_no_model_is_left() -> None:
    over = talk("one", "/model gone", "two", "/stats", "/set top_k 5", "/save kept", "/model mixtral", "three")
    assert over.terminal.talk.count("Error: No model is loaded.") == 3
    assert len(saved_session.load(saved_session.session_path("kept")).messages) == 2
    new = over.chat.state.loaded.model
    assert [m.content for m in new.asked[0][0]] == ["one", "[one]", "three"]  # type: ignore[attr-defined]


def test_given_up_reply_leaves_the_conversation_as_it_was() -> None:
    model = EchoModel()
    before = model.new_session()

    def thrice() -> None:
        raise KeyboardInterrupt

    over = talk("one", model=model)
    assert before.model is over.model
    over.model.press_ctrl_c = thrice
    over.chat.run(Typed("stop me", "two").read)
    assert over.said[-1] == ["one", "[one]", "two"]
    assert "[interrupted]" in over.terminal.talk
