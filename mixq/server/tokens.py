"""Tokens by themselves: /tokenize, /detokenize and /tokenizer_info, as vLLM and lm_eval know them.

Contract: text becomes ordinary tokens, whatever it spells, unless `parse_special` asks for more; a prompt that is
nothing but a control token's name ("</s>") is that token, since clients ask so for its id.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.server import fields
from mixq.server.engine_host import EngineHost
from mixq.server.errors import bad_field
from mixq.server.fields import Field
from mixq.server.json_body import json_body
from mixq.server.openai_chat import encode_chat, read_messages, tokenizer_of
from mixq.server.replies import json_reply

TOKENIZE: fields.Schema = {
    "model": Field(fields.text),
    "prompt": Field(fields.text),
    "content": Field(fields.text),  # llama.cpp's name for it
    "messages": Field(fields.listed),
    "add_special_tokens": Field(fields.flag, default=True),
    "parse_special": Field(fields.flag, default=False),
    "return_token_strs": Field(fields.flag, default=False),
}
DETOKENIZE: fields.Schema = {
    "model": Field(fields.text),
    "tokens": Field(lambda value, _: value, required=True),
}


async def tokenize(host: EngineHost, http: HttpRequest) -> Response:
    """Return the ids of a text, or of a conversation as the model reads it."""
    values = fields.read(TOKENIZE, await json_body(http))
    host.check_name(values["model"])
    given = [name for name in ("prompt", "content", "messages") if values[name] is not None]
    if len(given) != 1:
        raise bad_field("prompt", "Give one of prompt, content and messages.")
    messages = read_messages(values["messages"]) if given == ["messages"] else []
    model = host.engine.model
    tokenizer = tokenizer_of(model)

    def ids() -> list[int]:
        if messages:
            return encode_chat(model, messages, host.name)
        text: str = values[given[0]]
        special = tokenizer.special_id(text)
        if special is not None:
            return [special]
        begin = tokenizer.begin_ids if values["add_special_tokens"] and given == ["prompt"] else ()
        return [*begin, *tokenizer.encode(text, parse_special=values["parse_special"])]

    tokens = await host.aside(ids)
    reply: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": model.context}
    if values["return_token_strs"]:
        reply["token_strs"] = [tokenizer.token_text(i) for i in tokens]
    return json_reply(reply)


async def detokenize(host: EngineHost, http: HttpRequest) -> Response:
    """Return the text of ids."""
    values = fields.read(DETOKENIZE, await json_body(http))
    host.check_name(values["model"])
    tokenizer = tokenizer_of(host.engine.model)
    tokens = values["tokens"]
    check = fields.whole(0, tokenizer.vocab_size - 1)
    if not isinstance(tokens, list):
        raise bad_field("tokens", "tokens must be a list of token ids.")

    def text() -> str:
        for i, each in enumerate(tokens):
            check(each, f"tokens[{i}]")
        return tokenizer.decode(tokens)

    decoded = await host.aside(text)
    return json_reply({"prompt": decoded, "content": decoded})


async def tokenizer_info(host: EngineHost, _http: HttpRequest) -> Response:
    """Return the names of the control tokens that clients look for."""
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
