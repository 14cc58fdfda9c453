"""Token ids of what clients send: conversations and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixq.engine.model import Model
from mixq.errors import PromptError
from mixq.server.errors import RequestError
from mixq.text.tokenizer import Tokenizer


def tokenizer_of(model: Model, param: str | None = None) -> Tokenizer:
    """Return a model's tokenizer; `param` is the field that needs it.

    Raises:
        RequestError: the model has none.
    """
    if not model.prompting.has_text:
        raise RequestError(
            400, "This model has no tokenizer: it takes only token ids, at /v1/completions.", param=param
        )
    return model.tokenizer


def encode_text(model: Model, text: str) -> list[int]:
    """Return a text that the model continues, after the begin token.

    Raises:
        RequestError: an empty text without a begin token, or a model without a tokenizer.
    """
    tokenizer = tokenizer_of(model, "prompt")
    ids = [*tokenizer.begin_ids, *tokenizer.encode(text)]
    if not ids:
        raise RequestError(400, "The prompt is empty.", param="prompt")
    return ids


def encode_chat(model: Model, messages: Sequence[Mapping[str, str]], name: str) -> list[int]:
    """Return the prompt of a conversation; `name` is the model's in messages.

    Raises:
        RequestError: a base model, a model without a tokenizer, or an order of messages that the format does not have.
    """
    tokenizer_of(model)
    if not model.is_chat:
        raise RequestError(
            400,
            f"{name} is a base model: it completes texts and has no chat format.",
            param="messages",
            code="model_has_no_chat_format",
            hint="Use /v1/completions, or start the server with --template.",
        )
    try:
        return model.encode_chat(messages)
    except PromptError as error:
        raise RequestError(400, error.message, param="messages") from error
