"""Mixtral's instruct prompt, built as token ids message by message.

Contract: `encode_chat` gives the ids that mistral-common's version 1 instruct tokenizer gives:

    [bos] + encode("[INST] user [/INST]") + encode(assistant) + [eos] + encode("[INST] ...") ...

with the system text, and an empty line, in front of the first user message. Each `encode` is a call of its own:
rendering the conversation as one string and tokenizing that gives other ids from the second turn on. Begin and end are
ids, never text, so nothing that a message says can close a turn. "[INST]" is ordinary text in this format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixq.config import did_you_mean
from mixq.errors import PromptError, UsageError, printable
from mixq.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise PromptError(
                f"message role is {printable(repr(self.role))}; it must be one of {', '.join(ROLES)}."
                + did_you_mean(str(self.role), ROLES)
            )
        if not isinstance(self.content, str):
            raise PromptError(
                f"the content of a {self.role} message is {type(self.content).__name__}; it must be text."
            )

    @classmethod
    def of(cls, value: Message | Mapping[str, Any]) -> Message:
        """Return `value` as a message: a Message, or a mapping with exactly the keys role and content."""
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(f"a message is {type(value).__name__}; it must be a Message or a dict.")
        known = ("role", "content")
        for key in value:
            if key not in known:
                raise UsageError(f"unknown key {printable(repr(key))} in a message." + did_you_mean(str(key), known))
        for key in known:
            if key not in value:
                raise UsageError(f"a message lacks the key {key!r}.")
        return cls(value["role"], value["content"])


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message | Mapping[str, Any]]) -> list[int]:
    """Return the prompt that asks for the next assistant message.

    Args:
        tokenizer: of the model.
        messages: any number of system messages, then user and assistant in turn, a user message last.

    Raises:
        PromptError: no messages, another order of roles, or an empty message.
    """
    conversation = [Message.of(message) for message in messages]
    turns = [message for message in conversation if message.role != "system"]
    _check_order(conversation, turns)
    system = "\n\n".join(message.content for message in conversation if message.role == "system" and message.content)
    ids = [tokenizer.bos_id]
    for position, message in enumerate(turns):
        if message.role == "assistant":
            ids += [*tokenizer.encode(message.content), tokenizer.eos_id]
        else:
            content = f"{system}\n\n{message.content}" if system and position == 0 else message.content
            ids += tokenizer.encode(f"[INST] {content} [/INST]")
    return ids


def _check_order(conversation: list[Message], turns: list[Message]) -> None:
    if not turns:
        raise PromptError("The conversation has no user message.")
    system_count = len(conversation) - len(turns)
    if any(message.role != "system" for message in conversation[:system_count]):
        raise PromptError("A system message stands after a user message; it must come first.")
    for position, message in enumerate(turns):
        wanted = "user" if position % 2 == 0 else "assistant"
        place = f"message {system_count + position + 1}"
        if message.role != wanted:
            raise PromptError(f"{place} is from {message.role}; user and assistant take turns, the user first.")
        if not message.content.strip():
            raise PromptError(f"{place} ({message.role}) is empty.")
    if turns[-1].role != "user":
        raise PromptError("The last message is from the assistant; a reply needs a user message to answer.")
