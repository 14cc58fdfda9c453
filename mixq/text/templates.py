"""The chat templates that mixq writes: Mistral's two, chatml, Alpaca, Vicuna, Llama 2; and "none" for a base model.

Contract: `get_template` returns a template by name. In mistral-v3, and in chatml if the model has its tokens, turns are
marked by control tokens, which no message can contain. In the other templates the markers are ordinary text ("[INST]",
"USER:"), as in training: a message that contains a marker looks like a turn to the model, but it cannot contain the
end token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mixq.config import TEMPLATES
from mixq.errors import PromptError, UsageError, did_you_mean, printable
from mixq.text.chat_template import ChatTemplate, Message, PromptBuilder
from mixq.text.tokenizer import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


@dataclass(frozen=True)
class MistralV1(ChatTemplate):
    """Mixtral 8x7B Instruct: the ids of mistral-common's version 1 instruct tokenizer.

        [bos] + encode("[INST] user [/INST]") + encode(assistant) + [eos] + encode("[INST] ...") ...

    with the system prompt, and an empty line, before the first user message. Each `encode` is a separate call:
    rendering the conversation as one string and tokenizing that gives other ids from the second turn on.
    """

    name: ClassVar[str] = "mistral-v1"

    def _encode(self, tokenizer: Tokenizer, system: str, turns: Sequence[Message]) -> list[int]:
        ids = [tokenizer.bos_id]
        for position, message in enumerate(turns):
            if message.role == "assistant":
                ids += [*tokenizer.encode(message.content), tokenizer.eos_id]
            else:
                first = system if position == 0 else ""
                ids += tokenizer.encode(f"[INST] {_joined(first, message.content)} [/INST]")
        return ids


@dataclass(frozen=True)
class MistralV3(ChatTemplate):
    """Mixtral 8x22B Instruct: the ids of mistral-common's version 3 instruct tokenizer, and of its version 2.

        [bos] [INST] encode(user) [/INST] encode(assistant) [eos] [INST] encode(user) [/INST]

    [INST] and [/INST] are control tokens. The system prompt and an empty line precede the last user message. Spaces at
    the end of a reply are removed.
    """

    name: ClassVar[str] = "mistral-v3"

    def _encode(self, tokenizer: Tokenizer, system: str, turns: Sequence[Message]) -> list[int]:
        opens, closes = tokenizer.special_id("[INST]"), tokenizer.special_id("[/INST]")
        if opens is None or closes is None:
            raise PromptError(
                "The template mistral-v3 needs the control tokens [INST] and [/INST]; this tokenizer has none.",
                hint="Use --template mistral-v1, where they are text.",
            )
        ids = [tokenizer.bos_id]
        for position, message in enumerate(turns):
            if message.role == "assistant":
                ids += [*tokenizer.encode(message.content.rstrip(" ")), tokenizer.eos_id]
            else:
                last = system if position == len(turns) - 1 else ""
                ids += [opens, *tokenizer.encode(_joined(last, message.content)), closes]
        return ids


@dataclass(frozen=True)
class ChatML(ChatTemplate):
    """chatml, of Hermes, Dolphin and many others.

        [bos] <|im_start|>system\\n...<|im_end|>\\n<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n

    The markers are control tokens if the model has them, else text. The BOS token comes first unless
    tokenizer_config.json has add_bos_token false: training used it, even if the Jinja template omits it.
    """

    name: ClassVar[str] = "chatml"
    stops: ClassVar[tuple[str, ...]] = (IM_END, IM_START)

    system: str | None = None  # the system prompt of a conversation without one; None for no system turn

    def _encode(self, tokenizer: Tokenizer, system: str, turns: Sequence[Message]) -> list[int]:
        prompt = PromptBuilder(tokenizer)
        prompt.begin(tokenizer.begin_ids)
        system = system or self.system or ""
        head = [Message("system", system)] if system else []
        for message in (*head, *turns):
            prompt.marker(IM_START)
            prompt.text(f"{message.role}\n{message.content}")
            prompt.marker(IM_END)
            prompt.text("\n")
        prompt.marker(IM_START)
        prompt.text("assistant\n")
        return prompt.ids()

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return <|im_end|> and the end token."""
        marks = (tokenizer.special_id(IM_END), tokenizer.special_id(IM_START))
        return tuple(dict.fromkeys(i for i in (*marks, tokenizer.eos_id) if i is not None))


@dataclass(frozen=True)
class _TextMarks(ChatTemplate):
    """A template with text markers: the system prompt, then turns; a reply ends with the end token."""

    system: str | None = None  # the system prompt of a conversation without one

    @abstractmethod
    def _pieces(self) -> tuple[str, str, str, str, str]:
        """Return the text after the system prompt, and the texts before and after a user's message and a reply."""

    def _encode(self, tokenizer: Tokenizer, system: str, turns: Sequence[Message]) -> list[int]:
        after_system, before_user, after_user, before_reply, after_reply = self._pieces()
        prompt = PromptBuilder(tokenizer)
        prompt.begin(tokenizer.begin_ids)
        system = (system or self.system or "").strip()
        prompt.text(f"{system}{after_system}" if system else "")
        for message in turns:
            if message.role == "user":
                prompt.text(f"{before_user}{message.content.strip()}{after_user}")
            else:
                prompt.text(f"{before_reply}{message.content.strip()}")
                prompt.token(tokenizer.eos_id)
                prompt.text(after_reply)
        return prompt.ids()


@dataclass(frozen=True)
class Alpaca(_TextMarks):
    """Stanford Alpaca's format; for several turns, each reply ends with the end token.

    [bos] system\\n\\n### Instruction:\\nuser\\n\\n### Response:\\nassistant [eos] \\n\\n### Instruction:\\n...
    """

    name: ClassVar[str] = "alpaca"
    stops: ClassVar[tuple[str, ...]] = ("### Instruction",)

    system: str | None = ALPACA_SYSTEM

    def _pieces(self) -> tuple[str, str, str, str, str]:
        return "\n\n", "### Instruction:\n", "\n\n### Response:\n", "", "\n\n"


@dataclass(frozen=True)
class Vicuna(_TextMarks):
    """Vicuna 1.1 and later, as FastChat writes it; or with line breaks between the turns, as in some templates.

    [bos] system USER: user ASSISTANT: assistant [eos] USER: user ASSISTANT:
    """

    name: ClassVar[str] = "vicuna"
    stops: ClassVar[tuple[str, ...]] = (" USER:", "\nUSER:")

    system: str | None = VICUNA_SYSTEM
    lines: bool = False  # turns end with a line break instead of a space

    def _pieces(self) -> tuple[str, str, str, str, str]:
        after_system, between, after_reply = ("\n\n", "\n", "\n") if self.lines else (" ", " ", "")
        return after_system, "USER: ", f"{between}ASSISTANT:", " ", after_reply


@dataclass(frozen=True)
class Llama2(ChatTemplate):
    """Llama 2 Chat, as Meta's reference code writes it: each pair of turns is a separate text.

    [bos] [INST] <<SYS>>\\nsystem\\n<</SYS>>\\n\\nuser [/INST] assistant [eos] [bos] [INST] user [/INST]
    """

    name: ClassVar[str] = "llama-2"

    def _encode(self, tokenizer: Tokenizer, system: str, turns: Sequence[Message]) -> list[int]:
        prompt = PromptBuilder(tokenizer)
        for position, message in enumerate(turns):
            if message.role == "user":
                prompt.begin((tokenizer.bos_id,))
                head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and position == 0 else ""
                prompt.text(f"[INST] {(head + message.content).strip()} [/INST]")
            else:
                prompt.text(f" {message.content.strip()} ")
                prompt.token(tokenizer.eos_id)
        return prompt.ids()


@dataclass(frozen=True)
class BaseModel(ChatTemplate):
    """No chat template: the model continues texts."""

    name: ClassVar[str] = "none"
    is_chat: ClassVar[bool] = False

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message | Mapping[str, Any]]) -> list[int]:
        """Raise PromptError: a base model has no chat template."""
        raise PromptError(
            f"This is a base model, which continues texts and cannot chat: {self.why}.",
            hint="Use `mixq run -p TEXT` or generate() to complete a text. If the model was trained for chat, "
            f"set its template: --template {'|'.join(name for name in TEMPLATES if name != self.name)}.",
        )

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return no tokens: only the model's end tokens end a text."""
        return ()

    def _encode(self, tokenizer: Tokenizer, system: str, turns: Sequence[Message]) -> list[int]:
        raise AssertionError("encode refuses")


_KINDS: dict[str, type[ChatTemplate]] = {
    kind.name: kind for kind in (MistralV1, MistralV3, ChatML, Alpaca, Vicuna, Llama2, BaseModel)
}
assert tuple(_KINDS) == TEMPLATES


def get_template(name: str) -> ChatTemplate:
    """Return the template with this name.

    Raises:
        UsageError: unknown name; the message suggests the nearest.
    """
    if name not in _KINDS:
        raise UsageError(
            f"unknown template {printable(repr(name))}; choose from {', '.join(TEMPLATES)}."
            + did_you_mean(str(name), TEMPLATES)
        )
    return _KINDS[name]()


def _joined(system: str, content: str) -> str:
    return f"{system}\n\n{content}" if system else content
