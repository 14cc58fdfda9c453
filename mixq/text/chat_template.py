"""Chat templates: turn a conversation into the token ids of a prompt.

Contract: a `ChatTemplate` builds the ids message by message. Control tokens are inserted as ids, never as text, so in
templates with control tokens no message can start or end a turn. `stops` and `end_ids` end a reply. The templates are
in `mixq.text.templates`; `mixq.text.choice` chooses one for a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mixq.errors import Fields, PromptError, UsageError
from mixq.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str

    def __post_init__(self) -> None:
        fields = Fields({"role": self.role, "content": self.content}, "message ", PromptError)
        fields.one_of("role", ROLES)
        fields.text("content")

    @classmethod
    def of(cls, value: Message | Mapping[str, Any]) -> Message:
        """Return `value` as a message: a Message, or a mapping with exactly the keys role and content."""
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(f"a message is {type(value).__name__}; it must be a Message or a dict.")
        fields = Fields(value, "message ", PromptError)
        fields.only(("role", "content"))
        return cls(fields.one_of("role", ROLES), fields.text("content"))


@dataclass(frozen=True)
class ChatTemplate(ABC):
    """A chat template."""

    name: ClassVar[str]  # for users to choose it
    is_chat: ClassVar[bool] = True  # False for a base model, which continues texts
    stops: ClassVar[tuple[str, ...]] = ()  # stop strings; they end a reply and are not part of it

    why: str = "it was chosen by name"  # the reason for the choice, in a sentence
    note: str | None = None  # a warning for the user; None for none

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message | Mapping[str, Any]]) -> list[int]:
        """Return the prompt for the next assistant message.

        Args:
            tokenizer: of the model.
            messages: any number of system messages, then user and assistant in turn, a user message last.

        Raises:
            PromptError: no messages, roles in the wrong order, an empty message; or a base model, which has no chat
                template.
        """
        return self._encode(tokenizer, *_checked(messages))

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the tokens that end a reply."""
        return (tokenizer.eos_id,)

    @abstractmethod
    def _encode(self, tokenizer: Tokenizer, system: str, turns: Sequence[Message]) -> list[int]:
        """Encode the system prompt ("" for none), then user and assistant messages in turn, a user's last."""


class PromptBuilder:
    """Collects text and control tokens, and returns their ids.

    Text between two control tokens is encoded in one call, as if the tokenizer read the whole prompt.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._text: list[str] = []
        self._begins = True

    def begin(self, ids: Sequence[int]) -> None:
        """Append the BOS token; the next text is encoded as the start of a text, with its leading space."""
        self.token(*ids)
        self._begins = True

    def text(self, text: str) -> None:
        """Append text."""
        self._text.append(text)

    def token(self, *ids: int) -> None:
        """Append control tokens."""
        self._flush()
        self._ids += ids
        self._begins = self._begins and not ids

    def marker(self, name: str) -> None:
        """Append the control token with this name, or the name as text if the tokenizer does not have it."""
        token_id = self._tokenizer.special_id(name)
        if token_id is None:
            self.text(name)
        else:
            self.token(token_id)

    def ids(self) -> list[int]:
        """Return the prompt."""
        self._flush()
        return self._ids

    def _flush(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        if text:
            self._ids += self._tokenizer.encode(text, continues=not self._begins)
            self._begins = False


def _checked(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[str, list[Message]]:
    """Return the system prompt and the turns of a conversation."""
    conversation = [Message.of(message) for message in messages]
    turns = [message for message in conversation if message.role != "system"]
    if not turns:
        raise PromptError("The conversation has no user message.")
    system_count = len(conversation) - len(turns)
    if any(message.role != "system" for message in conversation[:system_count]):
        raise PromptError("A system message follows a user message; it must come first.")
    for position, message in enumerate(turns):
        wanted = "user" if position % 2 == 0 else "assistant"
        place = f"message {system_count + position + 1}"
        if message.role != wanted:
            raise PromptError(f"{place} is from {message.role}; user and assistant take turns, the user first.")
        if not message.content.strip():
            raise PromptError(f"{place} ({message.role}) is empty.")
    if turns[-1].role != "user":
        raise PromptError("The last message is from the assistant; it must be from the user.")
    return "\n\n".join(message.content for message in conversation[:system_count] if message.content), turns
