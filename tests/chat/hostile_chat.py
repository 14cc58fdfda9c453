"""A chat in a terminal with a model that says what stands in a file: `hostile_chat.py TEXTS.json [--plain]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mixq.chat.chat import Chat
from mixq.chat.input import LineInput
from mixq.chat.state import Loaded
from mixq.chat.terminal import Terminal
from mixq.engine.events import Event, PromptProgress, Token
from mixq.text.chat_template import Message
from tests.chat.fakes import EchoModel, EchoSession, FakeModels, done

TEXTS = json.loads(Path(sys.argv[1]).read_text())


class Hostile(EchoModel):
    def new_session(self) -> EchoSession:
        return Says(self)


class Says(EchoSession):
    def chat(self, messages: list[Message], **options: Any) -> Iterator[Event]:
        whole = "\n\n".join(f"{number}. {text}" for number, text in enumerate(TEXTS))
        yield PromptProgress(1, 1)
        for character in whole:
            yield Token(1, character)
        yield done(whole)


chat = Chat(Loaded("hostile", Hostile(), {}), FakeModels(), Terminal(plain="--plain" in sys.argv))  # type: ignore[arg-type]
chat.run(LineInput(chat.status_line, None).read)
