"""One conversation with a model: what has been said, and asking for the next reply.

Contract: `Conversation` keeps only whole turns. A reply that Ctrl-C has stopped is kept as far as it came; a turn that
gave no text at all, or that could not be run, is forgotten. Text goes to `show` as it comes. What the model has to say
besides goes where warnings go. This module knows no commands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from mixq.cli import output
from mixq.events import Done, Event, Notice, PromptProgress, Token
from mixq.text.chat_template import Message

Show = Callable[[str], None]


class ChatSession(Protocol):
    """What a conversation needs of `mixq.engine.Session`."""

    def chat(self, messages: list[Message], **sampling: Any) -> Iterator[Event]: ...


class Conversation:
    """Messages, and the session that has run them.

    Args:
        new_session: gives an empty session.
        sampling: parameters of every reply.
        system: system text, "" for none.
    """

    def __init__(self, new_session: Callable[[], ChatSession], sampling: Mapping[str, Any], system: str = "") -> None:
        self._new_session = new_session
        self._session = new_session()
        self._sampling = dict(sampling)
        self._attempt = 0
        self.system = system
        self.messages: list[Message] = []
        self.last: Done | None = None

    def clear(self) -> None:
        """Forget every message; the system text stays."""
        self._session = self._new_session()
        self.messages.clear()
        self.last = None

    def ask(
        self,
        text: str,
        show: Show,
        *,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Done:
        """Say `text` and return the end of the reply, whose text has been given to `show` piece by piece.

        Raises:
            PromptError: the conversation does not fit into the context; it is then as before.
        """
        self._attempt = 0
        return self._reply([*self.messages, Message("user", text)], show, cancel, progress)

    @property
    def is_greedy(self) -> bool:
        """Whether the same question has the same reply."""
        return self._sampling.get("temperature") == 0

    @property
    def can_regenerate(self) -> bool:
        """Whether there is a reply to ask for again."""
        return bool(self.messages)

    def regenerate(self, show: Show, *, cancel: threading.Event | None = None) -> Done:
        """Replace the last reply; with a fixed seed, each attempt has the next seed."""
        self._attempt += 1
        return self._reply(self.messages[:-1], show, cancel, None)

    def _reply(
        self,
        messages: list[Message],
        show: Show,
        cancel: threading.Event | None,
        progress: Callable[[int, int], None] | None,
    ) -> Done:
        head = [Message("system", self.system)] if self.system else []
        sampling = dict(self._sampling)
        if sampling.get("seed") is not None:
            sampling["seed"] += self._attempt
        done = show_events(self._session.chat(head + messages, cancel=cancel, **sampling), show, progress)
        if done.text.strip():
            self.messages = [*messages, Message("assistant", done.text)]
        self.last = done
        return done


def show_events(events: Iterator[Event], show: Show, progress: Callable[[int, int], None] | None = None) -> Done:
    """Read one answer to its end, giving its text to `show` as it comes and prompt progress to `progress`."""
    for event in events:
        if isinstance(event, Token):
            if event.text:
                show(event.text)
        elif isinstance(event, PromptProgress):
            if progress is not None:
                progress(event.done, event.total)
        elif isinstance(event, Notice):
            output.warn(event.text)
        else:
            if event.tail:
                show(event.tail)
            return event
    raise AssertionError("an answer ends with Done")
