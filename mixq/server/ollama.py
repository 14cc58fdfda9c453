"""Ollama's interface: /api/chat, /api/generate, /api/tags, /api/show, /api/ps, /api/version.

Contract: what Ollama's own client library reads. Streams are lines of JSON; the last has `done` true and the times in
nanoseconds. There is one model, and it is always loaded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.events import Done, Token
from mixq.engine.model import Model
from mixq.engine.request import Request
from mixq.errors import MixqError
from mixq.server import fields, ollama_fields
from mixq.server.engine_host import EngineHost, Make
from mixq.server.errors import bad_field, ollama_error
from mixq.server.facts import Facts
from mixq.server.json_body import dump, json_body
from mixq.server.openai_chat import encode_chat, tokenizer_of
from mixq.server.replies import json_reply
from mixq.server.streams import Answers, EventStream

Piece = Callable[[str], Mapping[str, Any]]
"""Text as a part of a reply: /api/chat and /api/generate differ in nothing else."""


async def chat(host: EngineHost, http: HttpRequest) -> Response:
    """Answer a conversation."""
    values = fields.read(ollama_fields.CHAT, await json_body(http))
    messages = ollama_fields.read_messages(values["messages"])
    make = _request(host, values, lambda model: (encode_chat(model, messages, host.name), False))
    return await _reply(host, values, make, lambda text: {"message": {"role": "assistant", "content": text}})


async def generate(host: EngineHost, http: HttpRequest) -> Response:
    """Answer a prompt: as a message, or, with `raw` and for a base model, as a text to go on from."""
    values = fields.read(ollama_fields.GENERATE, await json_body(http))
    prompt, system = values["prompt"], values["system"]

    def encode(model: Model) -> tuple[list[int], bool]:
        if values["raw"] or not model.is_chat:
            if system:
                raise bad_field("system", "system is not supported here: a text to go on from has no place for it.")
            tokenizer = tokenizer_of(model)
            return [*tokenizer.begin_ids, *tokenizer.encode(prompt)], True
        head = [{"role": "system", "content": system}] if system else []
        return encode_chat(model, [*head, {"role": "user", "content": prompt}], host.name), False

    make = _request(host, values, encode)
    if not prompt:  # Ollama's way to ask for a model to be loaded
        end = {"response": "", "done": True, "done_reason": "load"}
        return json_reply({"model": host.name, "created_at": _now(), **end})
    return await _reply(host, values, make, lambda text: {"response": text})


def _request(host: EngineHost, values: Mapping[str, Any], encode: Callable[[Model], tuple[list[int], bool]]) -> Make:
    """Check a request; return what makes it. `encode` gives ids, and whether the answer goes on from a text."""
    host.check_name(values["model"])
    engine = host.engine
    model = engine.model
    params = ollama_fields.sampling(values["options"], engine.sampling, seed=model.options.seed, context=model.context)
    spec = ollama_fields.grammar(values["format"])

    def make(model: Model) -> list[Request]:
        ids, continues = encode(model)
        return [Request(ids, params, continues_text=continues, grammar=spec)]

    return make


async def _reply(host: EngineHost, values: Mapping[str, Any], make: Make, piece: Piece) -> Response:
    if not values["stream"]:
        async with host.answers(make) as answers:
            done = (await answers.results(1))[0].done
        return json_reply({**_head(host), **piece(done.text), **_end(done)})
    stack = AsyncExitStack()
    answers = await stack.enter_async_context(host.answers(make))
    return EventStream(_lines(host, answers, piece), "application/x-ndjson", stack)


async def _lines(host: EngineHost, answers: Answers, piece: Piece) -> AsyncIterator[bytes]:
    try:
        async for batch in answers.batches():
            lines = []
            for _, event in batch:
                if isinstance(event, Token) and event.text:
                    lines.append({**_head(host), **piece(event.text), "done": False})
                elif isinstance(event, Done):
                    lines.append({**_head(host), **piece(event.tail), **_end(event)})
            if lines:
                yield b"".join(dump(line) + b"\n" for line in lines)
    except MixqError as error:
        yield dump(ollama_error(error)) + b"\n"


def _head(host: EngineHost) -> dict[str, Any]:
    return {"model": host.name, "created_at": _now()}


def _end(done: Done) -> dict[str, Any]:
    stats = done.stats
    seconds = {
        "total_duration": stats.time_to_first_token + stats.decode_seconds,
        "load_duration": 0.0,
        "prompt_eval_duration": stats.prompt_seconds,
        "eval_duration": stats.decode_seconds,
    }
    return {
        "done": True,
        "done_reason": "stop" if done.reason == "stop" else "length",
        **{name: int(value * 1e9) for name, value in seconds.items()},
        "prompt_eval_count": stats.prompt_tokens + stats.cached_tokens,
        "eval_count": len(done.token_ids),
    }


def _now() -> str:
    return _time(time.time())


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _listed(host: EngineHost, facts: Facts) -> dict[str, Any]:
    return {
        "name": host.name,
        "model": host.name,
        "modified_at": _time(facts.modified_at),
        "size": facts.nbytes,
        "digest": hashlib.sha256(f"{facts.name}\0{facts.nbytes}".encode()).hexdigest(),
        "details": _details(facts),
    }


def _details(facts: Facts) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": facts.parameter_size,
        "quantization_level": facts.quantization,
    }


async def tags(host: EngineHost, _http: HttpRequest) -> Response:
    """List the model."""
    return json_reply({"models": [_listed(host, Facts.of(host.name, host.engine.model))]})


async def running(host: EngineHost, _http: HttpRequest) -> Response:
    """List the model again: it is loaded, and stays."""
    model = host.engine.model
    facts = Facts.of(host.name, model)
    vram = model.placement.as_dict().get("vram_taken_bytes", 0)
    forever = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": vram, "context_length": model.context}
    return json_reply({"models": [{**_listed(host, facts), **forever}]})


async def show(host: EngineHost, http: HttpRequest) -> Response:
    """Describe the model."""
    values = fields.read(ollama_fields.SHOW, await json_body(http))
    host.check_name(values["model"] if values["model"] is not None else values["name"])
    engine = host.engine
    facts = Facts.of(host.name, engine.model)
    return json_reply(
        {
            "modelfile": "",
            "parameters": "\n".join(f"{name} {value}" for name, value in engine.sampling.items()),
            "template": f"(the chat format {engine.model.template.name}, made of token ids)",
            "license": "",
            "details": _details(facts),
            "model_info": facts.model_info(),
            "capabilities": ["completion"],
            "modified_at": _time(facts.modified_at),
        }
    )
