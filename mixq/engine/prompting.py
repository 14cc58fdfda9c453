"""The text side of a model folder: tokenizer, chat template, the tokens that end an answer.

Contract: turns texts and conversations into token ids, and a request into a checked `Task`. Files are read when they
are first needed, so that a folder without a tokenizer still accepts ids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixq.engine.answer import Request, Task, check_prompt
from mixq.errors import PromptError, UsageError, printable
from mixq.formats.folder import ModelFolder
from mixq.formats.weights import Weights
from mixq.text.chat_template import ChatTemplate, Message
from mixq.text.choice import choose_template
from mixq.text.grammar import GrammarCompiler
from mixq.text.open import open_tokenizer
from mixq.text.templates import get_template
from mixq.text.tokenizer import StreamDecoder, Tokenizer
from mixq.text.tokenizer_config import TokenizerConfig

Messages = Sequence[Message | Mapping[str, Any]]

TextOrIds = str | Sequence[int] | Tensor | NDArray[Any]
"""A text, or token ids."""


class Prompting:
    """The text side of a model.

    Args:
        folder: the model folder, or synthetic weights in memory, which have no tokenizer.
        context: positions of a sequence.
        template: name of the chat template; None takes the one that the model was trained with.
        say: takes a line for the user when the chat template is uncertain.
    """

    def __init__(
        self,
        folder: Weights,
        context: int | None = None,
        template: str | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._folder = folder
        self._context = folder.config.max_position_embeddings if context is None else context
        self._template = template
        self._say = say
        self.has_text = folder.tokenizer_path is not None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer.

        Raises:
            PromptError: the folder has none; such a model takes token ids only.
        """
        if not self.has_text:
            raise PromptError(
                f"{printable(self._folder.path)} has no tokenizer.model or tokenizer.json, so it accepts token ids, "
                "not text.",
                hint="Copy tokenizer.model from the original checkpoint into the folder.",
            )
        return open_tokenizer(self._folder.path, self._tokenizer_config)

    @functools.cached_property
    def _tokenizer_config(self) -> TokenizerConfig:
        return TokenizerConfig.read(self._folder.path)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template: the option's, else the model's; `none` for a base model."""
        if not self.has_text:
            return choose_template(None, None)
        if self._template is not None:
            return get_template(self._template)
        raw = self._folder.raw_config if isinstance(self._folder, ModelFolder) else {}
        chosen = choose_template(self._folder.path, self.tokenizer, self._tokenizer_config, raw)
        if chosen.note is not None:
            self._say(chosen.note)
        return chosen

    @property
    def is_chat(self) -> bool:
        """False for a base model, which continues texts and has no chat template."""
        return self.template.is_chat

    @functools.cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the folder's and the chat template's."""
        ends = self.template.end_ids(self.tokenizer) if self.has_text else ()
        ids = dict.fromkeys((*self._folder.eos_token_ids, *ends))
        return tuple(i for i in ids if i < self._folder.config.vocab_size)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Tokens that may be sampled: logits beyond the tokenizer's vocabulary are padding."""
        rows = self._folder.config.vocab_size
        return min(rows, self.tokenizer.vocab_size) if self.has_text else rows

    @functools.cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.vocab_size, self.eos_token_ids)

    def encode(self, text: TextOrIds) -> list[int]:
        """Return the tokens of a text with the BOS token in front, or the ids as they are.

        Raises:
            PromptError: an empty text, or a model without a tokenizer.
        """
        if not isinstance(text, str):
            return list(text.tolist() if isinstance(text, Tensor | np.ndarray) else text)
        ids = self.tokenizer.encode(text)
        if not ids:
            raise PromptError("The prompt is empty.", hint="Use a prompt with text.")
        return [*self.tokenizer.begin_ids, *ids]

    def encode_chat(self, messages: Messages) -> list[int]:
        """Return the prompt that asks for the next reply of a conversation; messages and errors as for `Model.chat`."""
        return self.template.encode(self.tokenizer, messages)

    def task(self, request: Request) -> Task:
        """Return the task of answering a prompt, checked against this model.

        Raises:
            PromptError: the prompt is empty, too long for the context, or has an id outside the vocabulary.
            UsageError: stop strings or a grammar for a model without a tokenizer; an unsupported grammar; a
                token outside the vocabulary in logit_bias.
        """
        params, grammar, scored = request.params, request.grammar, request.prompt_logprobs
        if not self.has_text and (params.stop or grammar is not None):
            raise UsageError("Stop strings and grammars need a tokenizer; the model folder has none.")
        check_prompt(request.prompt_ids, self._context, self.vocab_size)
        if params.logit_bias and max(params.logit_bias) >= self.vocab_size:
            raise UsageError(f"logit_bias has token {max(params.logit_bias)}; the vocabulary has {self.vocab_size}.")
        if scored is not None and not 0 <= scored <= 100:
            raise UsageError(f"prompt_logprobs is {scored}; it must be from 0 to 100.")
        is_reply = not request.continues_text
        if self.has_text and is_reply:
            params = replace(params, stop=(*params.stop, *self.template.stops))
        return Task(
            list(request.prompt_ids),
            params,
            self.eos_token_ids,
            self.vocab_size,
            StreamDecoder(self.tokenizer, strip_leading_space=is_reply) if self.has_text else None,
            self._grammars.compile(grammar) if grammar is not None else None,
            scored,
            request.experts,
        )
