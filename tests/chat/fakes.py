"""A model that echoes, a terminal that writes down, a prompt that types: a chat without any of the three."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.text import Text

from mixq.chat.chat import Chat
from mixq.chat.state import Loaded, Models
from mixq.engine.events import Done, Event, FinishReason, Notice, PromptProgress, Stats, Token
from mixq.errors import MixqError, ModelFileError, PromptTooLong
from mixq.text.chat_template import Message

CONTEXT = 64


def stats(used: int = 5, cached: int = 0) -> Stats:
    return Stats(3, cached, 0.1, 2, 0.1, 0.1, used, CONTEXT)


def done(text: str, reason: FinishReason = "stop", tail: str = "", used: int = 5) -> Done:
    return Done(reason, text, (1,) * len(text), stats(used), tail)


class EchoSession:
    """Answers with the last message in brackets; writes down what it was asked."""

    def __init__(self, model: EchoModel) -> None:
        self.model = model

    def chat(self, messages: list[Message], **options: Any) -> Iterator[Event]:
        self.model.asked.append((messages, options))
        return self._answer(messages[-1].content, options["cancel"])

    def answer(self, prompt_ids: list[int], *, continues_text: bool, **options: Any) -> Iterator[Event]:
        text = bytes(prompt_ids[1:]).decode()
        self.model.asked.append(([Message("user", text)], {**options, "continues_text": continues_text}))
        if options.get("max_tokens") == 0:
            return iter([PromptProgress(len(prompt_ids), len(prompt_ids)), done("", "length", used=len(prompt_ids))])
        return self._answer(text, options["cancel"])

    def _answer(self, said: str, cancel: threading.Event | None) -> Iterator[Event]:
        if "too long" in said:
            raise PromptTooLong(99, CONTEXT)
        yield PromptProgress(3, 3)
        if said == "say nothing":
            yield done("")
            return
        experts = ((0, 1), (2, 3)) if self.model.config.num_local_experts else ()
        yield Token(1, "[", experts=experts)
        if said == "stop me":
            assert cancel is not None
            self.model.press_ctrl_c()
            assert cancel.wait(5)
            yield done("[", "cancelled")
            return
        if said == "notice":
            yield Notice("the cache shrank\x1b[2J")
        yield Token(2, said, experts=experts)
        yield done(f"[{said}]", tail="]", used=60 if said == "fill" else 5)


@dataclass
class EchoModel:
    """What a chat needs of a model.

    Attributes:
        asked: messages and options of every call.
        press_ctrl_c: called where the user is to interrupt.
    """

    experts: int = 4
    is_chat: bool = True
    name: str = "echo"
    asked: list[tuple[list[Message], dict[str, Any]]] = field(default_factory=list)
    press_ctrl_c: Callable[[], None] = lambda: None
    closed: bool = False

    def __post_init__(self) -> None:
        self.config = SimpleNamespace(
            num_local_experts=self.experts, is_moe=self.experts > 0, max_position_embeddings=4 * CONTEXT
        )
        self.template = SimpleNamespace(name="mistral-v1" if self.is_chat else "none", why="it says\x1b[31m so")
        self.folder = SimpleNamespace(path=Path(f"/models/{self.name}"), nbytes=1000)
        self.placement = SimpleNamespace(device="cpu")
        self.tokenizer = SimpleNamespace(begin_ids=(1,), encode=lambda text: list(text.encode()))
        self.context = CONTEXT
        self.threads = 1

    def new_session(self) -> EchoSession:
        return EchoSession(self)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return [1, *"".join(f"<{m.role}>{m.content}" for m in messages).encode(), 2]

    def stats(self) -> dict[str, Any]:
        return {"model": "/models/echo", "context": CONTEXT, "kv_cache_bytes": 1000, "last": None}

    def notices(self) -> Iterator[str]:
        return iter(())

    def memory_gap(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


class FakeTerminal:
    """Writes down what it is told.

    Attributes:
        talk: everything but replies.
        replies: the text of each reply, as it came.
    """

    def __init__(self) -> None:
        self.talk = ""
        self.replies: list[str] = []
        self.progressed: list[tuple[str, int, int]] = []
        self.unicode = True
        self.cancel = threading.Event()

    def say(self, text: str | Text = "", style: str = "") -> None:
        self.talk += f"{text}\n"

    note = say

    def warn(self, text: str) -> None:
        self.talk += f"Warning: {text}\n"

    def error(self, error: MixqError) -> None:
        self.talk += f"Error: {error.message}\n{error.hint or ''}\n"

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        self.talk += "".join(f"{label}: {text}\n" for label, text in rows)

    def size(self) -> tuple[int, int]:
        return 100, 24

    def stream(self, *, markdown: bool) -> _Reply:
        return _Reply(self.replies)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda now, total: self.progressed.append((label, now, total))

    @contextmanager
    def replying(self) -> Iterator[threading.Event]:
        self.cancel = threading.Event()
        yield self.cancel


class _Reply:
    def __init__(self, replies: list[str]) -> None:
        self._replies = replies
        replies.append("")

    def push(self, text: str) -> None:
        self._replies[-1] += text

    def finish(self) -> None:
        pass


class Typed:
    """Types lines, then Ctrl-D. An exception among them is raised; `defaults` is what stood at the prompt already."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)
        self.defaults: list[str] = []
        self.unread = 0

    def read(self, default: str = "") -> str:
        self.defaults.append(default)
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


class FakeModels(Models):
    """Loads echo models by any name but those that say that they are broken."""

    def __init__(self) -> None:
        self.loaded: list[str | None] = []

    def names(self) -> list[str]:
        return ["mixtral", "odd\x1bname"]

    def check(self, name: str) -> None:
        if name == "nowhere":
            raise ModelFileError("'nowhere' is neither a folder nor a model in the store.")

    def load(self, name: str | None) -> Loaded:
        if name == "broken" or (name == "echo" and "gone" in self.loaded):
            raise ModelFileError("a shard is damaged.")
        self.loaded.append(name)
        if name == "gone":
            raise ModelFileError("it is gone.")
        return Loaded(name, EchoModel(name=name or "demo"), {"temperature": 0.7})  # type: ignore[arg-type]


@dataclass
class Talk:
    """A chat that is over."""

    chat: Chat
    model: EchoModel
    terminal: FakeTerminal
    prompt: Typed
    models: FakeModels

    @property
    def said(self) -> list[list[str]]:
        """The contents of the messages of each call."""
        return [[message.content for message in messages] for messages, _ in self.model.asked]


def talk(*lines: str | type[BaseException], system: str = "", model: EchoModel | None = None, **sampling: Any) -> Talk:
    """Lead a chat in which the user types `lines` and then leaves with Ctrl-D."""
    model = model or EchoModel()
    terminal, prompt, models = FakeTerminal(), Typed(*lines), FakeModels()
    model.press_ctrl_c = lambda: terminal.cancel.set()  # noqa: PLW0108  (the event is another one each time)
    chat = Chat(Loaded("echo", model, sampling), models, terminal, system)  # type: ignore[arg-type]
    chat.run(prompt.read)
    return Talk(chat, model, terminal, prompt, models)
