"""Token ids of what clients send; /tokenize, /detokenize and /tokenizer_info, as in vLLM and lm_eval.

Contract: text becomes ordinary tokens, also the names of control tokens, unless `parse_special` is set; but at
/tokenize a prompt that is just the name of a control token ("</s>") is that token, since clients get its id so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.model import Model
from mixq.errors import PromptError
from mixq.server.body import Body, ModelName, read
from mixq.server.engine_host import EngineHost
from mixq.server.errors import RequestError, bad_field, json_reply
from mixq.server.openai_body import Messages
from mixq.text.tokenizer import Tokenizer


def tokenizer_of(model: Model, param: str | None = None) -> Tokenizer:
    """Return a model's tokenizer; `param` is the field that needs it.

    Raises:
        RequestError: the model has none.
    """
    if not model.prompting.has_text:
        raise RequestError(
            400, "This model has no tokenizer, so it accepts only token ids, at /v1/completions.", param=param
        )
    return model.tokenizer


def encode_text(model: Model, text: str) -> list[int]:
    """Return a text that the model continues, after the BOS token.

    Raises:
        RequestError: an empty text without a BOS token, or a model without a tokenizer.
    """
    tokenizer = tokenizer_of(model, "prompt")
    ids = [*tokenizer.begin_ids, *tokenizer.encode(text)]
    if not ids:
        raise RequestError(400, "The prompt is empty.", param="prompt")
    return ids


def encode_chat(model: Model, messages: Sequence[Body], name: str) -> list[int]:
    """Return the prompt of a conversation; `name` is the model's in messages.

    Raises:
        RequestError: a base model, a model without a tokenizer, or an order of messages that the template does not
            allow.
    """
    tokenizer_of(model)
    if not model.is_chat:
        raise RequestError(
            400,
            f"{name} is a base model, which continues texts and has no chat template.",
            param="messages",
            code="model_has_no_chat_format",
            hint="Use /v1/completions, or start the server with --template.",
        )
    try:
        return model.encode_chat([message.model_dump() for message in messages])
    except PromptError as error:
        raise RequestError(400, error.message, param="messages") from error


class TokenizeBody(Body):
    """The body of /tokenize; `content` is llama.cpp's name for a prompt without the BOS token."""

    model: ModelName = None
    prompt: str = ""
    content: str = ""
    messages: Messages = Field(default_factory=list)
    add_special_tokens: bool = True
    parse_special: bool = False
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """The body of /detokenize."""

    model: ModelName = None
    tokens: Annotated[list[int], Field(fail_fast=True)]


async def tokenize(host: EngineHost, http: HttpRequest) -> Response:
    """Return the ids of a text or of a conversation."""
    body = await read(TokenizeBody, http)
    host.check_name(body.model)
    given = body.model_fields_set & {"prompt", "content", "messages"}
    if len(given) != 1:
        raise bad_field("prompt", "Use one of prompt, content and messages.")
    model = host.engine.model
    tokenizer = tokenizer_of(model)

    def ids() -> list[int]:
        if body.messages:
            return encode_chat(model, body.messages, host.name)
        text = body.prompt or body.content
        special = tokenizer.special_id(text)
        if special is not None:
            return [special]
        begin = tokenizer.begin_ids if body.add_special_tokens and "prompt" in given else ()
        return [*begin, *tokenizer.encode(text, parse_special=body.parse_special)]

    tokens = await host.aside(ids)
    strings = {"token_strs": [tokenizer.token_text(i) for i in tokens]} if body.return_token_strs else {}
    return json_reply({"tokens": tokens, "count": len(tokens), "max_model_len": model.context, **strings})


async def detokenize(host: EngineHost, http: HttpRequest) -> Response:
    body = await read(DetokenizeBody, http)
    host.check_name(body.model)
    tokenizer = tokenizer_of(host.engine.model)

    def text() -> str:
        for i, token in enumerate(body.tokens):
            if not 0 <= token < tokenizer.vocab_size:
                last = tokenizer.vocab_size - 1
                raise bad_field(f"tokens[{i}]", f"tokens[{i}] must be a token id from 0 to {last}, not {token}.")
        return tokenizer.decode(body.tokens)

    decoded = await host.aside(text)
    return json_reply({"prompt": decoded, "content": decoded})


async def tokenizer_info(host: EngineHost, _http: HttpRequest) -> Response:
    """Return the names of the control tokens."""
    model = host.engine.model
    tokenizer = tokenizer_of(model)
    return json_reply(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": tokenizer.token_text(tokenizer.bos_id) if tokenizer.bos_id >= 0 else None,
            "eos_token": tokenizer.token_text(tokenizer.eos_id),
            "vocab_size": model.vocab_size,
            "model_max_length": model.context,
            "add_bos_token": bool(tokenizer.begin_ids),
            "chat_format": model.template.name,
        }
    )
