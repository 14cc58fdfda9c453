"""Ollama's API: /api/chat, /api/generate, /api/tags, /api/show, /api/ps, /api/version.

Contract: what Ollama's client library reads. Streams are lines of JSON; the last has `done` true and the times in
nanoseconds. The only model is always loaded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.answer import Request
from mixq.engine.events import Done, Event, Token
from mixq.engine.model import Model
from mixq.errors import MixqError
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.server.body import read
from mixq.server.engine_host import EngineHost
from mixq.server.errors import bad_field, json_reply, ollama_error
from mixq.server.facts import VERSION
from mixq.server.ollama_body import ChatBody, GenerateBody, Message, Shared, ShowBody
from mixq.server.replies import Document, Reply, answer, finish_reason
from mixq.server.tokens import encode_chat, encode_text

Encode = Callable[[Model], tuple[list[int], bool]]
"""Returns the ids of a prompt, and whether the answer continues its text."""


async def chat(host: EngineHost, http: HttpRequest) -> Response:
    body = await read(ChatBody, http)
    reply = OllamaReply(
        host,
        body,
        lambda model: (encode_chat(model, body.messages, host.name), False),
        lambda text: {"message": {"role": "assistant", "content": text}},
    )
    return await answer(host, reply, stream=body.stream)


async def generate(host: EngineHost, http: HttpRequest) -> Response:
    """Answer a prompt as a message; with `raw`, or if the model is a base model, continue it as text."""
    body = await read(GenerateBody, http)

    def encode(model: Model) -> tuple[list[int], bool]:
        if body.raw or not model.is_chat:
            if body.system:
                raise bad_field("system", "system is not supported for a text to continue; put it into the prompt.")
            return encode_text(model, body.prompt), True
        system = [Message(role="system", content=body.system)] if body.system else []
        return encode_chat(model, [*system, Message(role="user", content=body.prompt)], host.name), False

    reply = OllamaReply(host, body, encode, lambda text: {"response": text})
    if not body.prompt:  # in Ollama, this loads a model
        return json_reply({**_head(host), "response": "", "done": True, "done_reason": "load"})
    return await answer(host, reply, stream=body.stream)


class OllamaReply(Reply):
    """A request and its response.

    Args:
        piece: returns a part of a response for a text: the only difference between /api/chat and /api/generate.
    """

    media_type = "application/x-ndjson"
    suffix = b"\n"

    def __init__(self, host: EngineHost, body: Shared, encode: Encode, piece: Callable[[str], Document]) -> None:
        host.check_name(body.model)
        engine = host.engine
        seed, context = engine.model.options.seed, engine.model.context
        self._host = host
        self._params = body.options.sampling(engine.sampling, seed=seed, context=context)
        self._grammar = body.grammar()
        self._encode = encode
        self._piece = piece

    def requests(self, model: Model) -> list[Request]:
        ids, continues = self._encode(model)
        return [Request(ids, self._params, continues_text=continues, grammar=self._grammar)]

    def whole(self, answers: Sequence[Done]) -> Document:
        [done] = answers
        return {**_head(self._host), **self._piece(done.text), **_end(done)}

    def part(self, index: int, event: Event) -> list[Document]:
        if isinstance(event, Token) and event.text:
            return [{**_head(self._host), **self._piece(event.text), "done": False}]
        if isinstance(event, Done):
            return [{**_head(self._host), **self._piece(event.tail), **_end(event)}]
        return []

    def error(self, error: MixqError) -> Document:
        return ollama_error(error)


def _head(host: EngineHost) -> Document:
    return {"model": host.name, "created_at": _time(time.time())}


def _end(done: Done) -> Document:
    stats = done.stats
    seconds = {
        "total_duration": stats.time_to_first_token + stats.decode_seconds,
        "load_duration": 0.0,
        "prompt_eval_duration": stats.prompt_seconds,
        "eval_duration": stats.decode_seconds,
    }
    return {
        "done": True,
        "done_reason": finish_reason(done),
        **{name: int(value * 1e9) for name, value in seconds.items()},
        "prompt_eval_count": stats.prompt_tokens + stats.cached_tokens,
        "eval_count": len(done.token_ids),
    }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _listed(host: EngineHost, **more: Any) -> Response:
    """Return a list of the one model."""
    folder = host.engine.model.folder
    entry = {
        "name": host.name,
        "model": host.name,
        "modified_at": _modified_at(folder.path),
        "size": folder.nbytes,
        "digest": hashlib.sha256(f"{host.name}\0{folder.nbytes}".encode()).hexdigest(),
        "details": _details(host.engine.model),
        **more,
    }
    return json_reply({"models": [entry]})


def _modified_at(folder: Path) -> str:
    config = folder / "config.json"
    return _time(config.stat().st_mtime if config.is_file() else 0.0)


def _details(model: Model) -> Document:
    count, family = _parameter_count(model), _family(model)
    quantization = model.folder.quantization if isinstance(model.folder, ModelFolder) else None
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M",
        "quantization_level": quantization.method if quantization else "not quantized",
    }


def _family(model: Model) -> str:
    return "mixtral" if model.config.is_moe else "mistral"


def _parameter_count(model: Model) -> int:
    return sum(prod(parameter.shape) for parameter in parameters(model.config))


async def version(_host: EngineHost, _http: HttpRequest) -> Response:
    """Return mixq's version."""
    return json_reply({"version": VERSION})


async def tags(host: EngineHost, _http: HttpRequest) -> Response:
    return _listed(host)


async def running(host: EngineHost, _http: HttpRequest) -> Response:
    """List the model, which is always loaded."""
    model = host.engine.model
    vram = model.placement.as_dict().get("vram_taken_bytes", 0)
    return _listed(host, expires_at="9999-12-31T23:59:59Z", size_vram=vram, context_length=model.context)


async def show(host: EngineHost, http: HttpRequest) -> Response:
    body = await read(ShowBody, http)
    host.check_name(body.model if body.model is not None else body.name)
    engine = host.engine
    model, config = engine.model, engine.model.config
    family = _family(model)
    shape = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
    }
    general = {"general.architecture": family, "general.parameter_count": _parameter_count(model)}
    return json_reply(
        {
            "modelfile": "",
            "parameters": "\n".join(f"{name} {value}" for name, value in engine.sampling.items()),
            "template": f"(the chat template {model.template.name}, applied as token ids)",
            "license": "",
            "details": _details(model),
            "model_info": {**general, **{f"{family}.{key}": value for key, value in shape.items()}},
            "capabilities": ["completion"],
            "modified_at": _modified_at(model.folder.path),
        }
    )
