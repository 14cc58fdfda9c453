"""A dialogue with a model: the messages so far, and the next reply.

Contract: `Dialogue` keeps only whole turns. Of a stopped reply, it keeps what has arrived; a turn that failed or gave
no text leaves the dialogue unchanged. The session keeps the KV cache, so that a turn runs only new tokens. A base model
has no turns: what is typed is appended to the text so far, which the model continues. No commands and no terminal here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixq.chat.heat_map import ExpertUse
from mixq.engine.events import Done, Event, Notice, PromptProgress, Token
from mixq.errors import UsageError
from mixq.text.chat_template import Message

if TYPE_CHECKING:
    from mixq.engine.model import Model
    from mixq.engine.session import Session


class Dialogue:
    """The messages, and the session that ran them.

    Args:
        model: replies.
        sampling: parameters of every reply; may be changed between replies.
        system: system prompt, "" for none.

    Raises:
        UsageError: a system prompt for a base model.

    Attributes:
        messages: whole turns, user and assistant alternating.
        last: the end of the last reply; None before the first.
        expert_use: the experts of the last reply; None for a dense model.
        context_used: positions of the context that the dialogue takes, as far as it has been run.
    """

    def __init__(self, model: Model, sampling: Mapping[str, Any], system: str = "") -> None:
        if system and not model.is_chat:
            raise UsageError("A base model has no system prompt.", hint="Put it into the text to continue.")
        self.sampling = dict(sampling)
        self.system = system
        self.messages: list[Message] = []
        self._attempt = 0
        self.use_model(model)

    def use_model(self, model: Model) -> None:
        """Continue with another model, or with an empty KV cache; the next message runs the whole dialogue."""
        self._model: Model | None = model
        self._session: Session | None = model.new_session()
        self._reset_figures()

    def unload(self) -> None:
        """Release the model; the dialogue has none until `use_model`."""
        self._model = self._session = None

    def _reset_figures(self) -> None:
        self.last: Done | None = None
        self.expert_use: ExpertUse | None = None
        self.context_used = 0

    def clear(self) -> None:
        """Remove all messages; the system prompt and its part of the KV cache stay."""
        self.messages = []
        self._reset_figures()

    def replace(self, messages: Sequence[Message], system: str) -> None:
        """Continue from other messages."""
        self.clear()
        self.messages = list(messages)
        self.system = system

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            UsageError: no model is loaded.
        """
        if self._model is None:
            raise no_model()
        return self._model

    def ask(self, text: str, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Send `text` and yield the reply's events; the turn is kept with the last of them.

        Raises:
            PromptError: the dialogue does not fit into the context; it is then unchanged.
        """
        self._attempt = 0
        return self._reply([*self.messages, Message("user", text)], cancel)

    def regenerate(self, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Replace the last reply by a new one; with a fixed seed, the next seed is used."""
        self._attempt += 1
        return self._reply(self.messages[:-1], cancel)

    def edit(self, text: str, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Replace the last message by `text`."""
        self._attempt = 0
        return self._reply([*self.messages[:-2], Message("user", text)], cancel)

    def read(self, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Run the messages so far, so that the next turn runs only its new tokens; without messages, yield nothing."""
        ids = self._beginning()
        if ids:
            assert self._session is not None
            options = {**self.sampling, "max_tokens": 0}
            for event in self._session.answer(ids, continues_text=False, cancel=cancel, **options):
                if isinstance(event, Done):
                    self.context_used = event.stats.context_used
                yield event

    @property
    def last_question(self) -> str | None:
        """The last message of the user; None where there is none."""
        return self.messages[-2].content if self.messages else None

    @property
    def is_greedy(self) -> bool:
        """Whether the same message always gets the same reply."""
        return self.sampling.get("temperature") == 0

    def _reply(self, messages: list[Message], cancel: threading.Event | None) -> Iterator[Event]:
        options = dict(self.sampling)
        if options.get("seed") is not None:
            options["seed"] = (options["seed"] + self._attempt) % 2**63
        experts = self.model.config.num_local_experts
        if experts:
            options["experts"] = True
        assert self._session is not None, "there is a model, so there is a session"
        if self.model.is_chat:
            events = self._session.chat(self._head() + messages, cancel=cancel, **options)
        else:
            events = self._session.answer(self._text_ids(messages), continues_text=True, cancel=cancel, **options)
        return self._kept(messages, events, ExpertUse(experts))

    def _kept(self, messages: list[Message], events: Iterator[Event], use: ExpertUse) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Token) and event.experts:
                use.add(event.experts)
            elif isinstance(event, Done):
                if event.text.strip():
                    self.messages = [*messages, Message("assistant", event.text)]
                self.last = event
                self.context_used = event.stats.context_used
                self.expert_use = use if use.tokens else None
            yield event

    def _head(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def _text_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of all texts together, which a base model continues."""
        tokenizer = self.model.tokenizer
        text = ""
        for message in messages:
            begins_line = message.role == "user" and text and not text.endswith("\n")
            text += ("\n" if begins_line else "") + message.content
        return [*tokenizer.begin_ids, *tokenizer.encode(text)]

    def _beginning(self) -> list[int]:
        """Return the ids that every later prompt begins with."""
        if not self.messages:
            return []
        if not self.model.is_chat:
            return self._text_ids(self.messages)
        said = self._head() + self.messages
        one, other = (self.model.encode_chat([*said, Message("user", text)]) for text in ("a", "Z"))
        same = 0
        while one[same] == other[same]:
            same += 1
        return one[:same]


def no_model() -> UsageError:
    """Return the error for a chat without a model."""
    return UsageError("No model is loaded.", hint="/model NAME loads one; /save keeps the conversation.")


def show_events(
    events: Iterator[Event],
    show: Callable[[str], None],
    *,
    warn: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> Done | None:
    """Read an answer to its end while it arrives.

    Args:
        show: called with its text.
        warn: called with the model's notices.
        progress: called with the number of prompt tokens that have run, and their total.

    Returns:
        The last event; None where nothing had to be run.
    """
    for event in events:
        if isinstance(event, Token):
            if event.text:
                show(event.text)
        elif isinstance(event, PromptProgress):
            if progress is not None:
                progress(event.done, event.total)
        elif isinstance(event, Notice):
            warn(event.text)
        elif isinstance(event, Done):
            if event.tail:
                show(event.tail)
            return event
    return None
