"""OpenAI's /v1/chat/completions, as the clients of OpenAI and Mistral call it.

Contract: a conversation in the model's own chat format, `n` answers to it, whole or as server-sent events. Choice i is
drawn with seed + i. Content is text; images, audio and tools are refused by name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.events import Done, PromptProgress, Token
from mixq.engine.model import Model
from mixq.engine.request import Request
from mixq.errors import PromptError, UsageError
from mixq.server import fields
from mixq.server.engine_host import EngineHost
from mixq.server.errors import RequestError, bad_field, shown
from mixq.server.fields import Field
from mixq.server.json_body import json_body
from mixq.server.openai_stream import Usage, event, finish_reason, sse
from mixq.server.replies import json_reply
from mixq.server.sampling_fields import (
    MOST_LOGPROBS,
    NO_TOOLS,
    RESPONSE_FORMAT,
    SHARED,
    Extension,
    choice,
    grammar,
    sampling,
)
from mixq.server.streams import Answers
from mixq.text.tokenizer import Tokenizer

TEXT_ONLY = "the model reads and writes text alone"

CHAT: fields.Schema = {
    **SHARED,
    "messages": Field(fields.listed, required=True),
    "max_tokens": Field(fields.whole(1, 2**31 - 1), nullable=True),
    "max_completion_tokens": Field(fields.whole(1, 2**31 - 1), nullable=True),
    "logprobs": Field(fields.flag, default=False, nullable=True),
    "top_logprobs": Field(fields.whole(0, MOST_LOGPROBS), nullable=True),
    "response_format": Field(fields.nested(RESPONSE_FORMAT), nullable=True),
    **fields.refused(NO_TOOLS, "tools", "functions", neutral=([],)),
    **fields.refused(NO_TOOLS, "tool_choice", "function_call", neutral=("none", "auto")),
    **fields.refused(NO_TOOLS, "parallel_tool_calls", neutral=(True, False)),
    **fields.refused(TEXT_ONLY, "modalities", neutral=(["text"],)),
    **fields.refused(TEXT_ONLY, "audio"),
    **fields.refused("the model does not think before it answers", "reasoning_effort", "prompt_mode"),
    **fields.refused("the server fetches nothing", "web_search_options"),
    **fields.refused("there is one length of answers", "verbosity"),
    **fields.refused("an answer is not predicted", "prediction", neutral=({"type": "content", "content": ""},)),
}

MESSAGE: fields.Schema = {
    "role": Field(fields.text, required=True),
    "content": Field(lambda value, _: value, required=True),
    **fields.refused("the model does not see it", "name"),
    **fields.refused(NO_TOOLS, "tool_calls", neutral=([],)),
    **fields.refused(NO_TOOLS, "function_call", "tool_call_id"),
    **fields.refused(TEXT_ONLY, "audio"),
    **fields.refused("the model has no such field", "refusal", "reasoning_content"),
    **fields.refused("the model has no such field", "annotations", neutral=([],)),
    **fields.refused("an answer cannot be begun for the model", "prefix", neutral=(False,)),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
PART: fields.Schema = {"type": Field(fields.text, required=True), "text": Field(fields.text, required=True)}


def read_messages(value: Sequence[Any], param: str = "messages") -> list[dict[str, str]]:
    """Return messages as the templates take them.

    Raises:
        RequestError: what is no message of text.
    """
    messages = []
    for i, each in enumerate(value):
        where = f"{param}[{i}]"
        message = fields.read(MESSAGE, each, where)
        role = message["role"]
        if role in ("tool", "function"):
            raise bad_field(
                f"{where}.role", f"{where}.role {role} is not supported: {NO_TOOLS}.", code="unsupported_value"
            )
        if role not in ROLES:
            raise bad_field(f"{where}.role", f"{where}.role is {shown(role)}; it must be system, user or assistant.")
        messages.append({"role": ROLES[role], "content": _content(message["content"], f"{where}.content")})
    return messages


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise bad_field(where, f"{where} is {shown(value)}; it must be a text or a list of text parts.")
    parts = []
    for i, part in enumerate(value):
        if isinstance(part, dict) and part.get("type") != "text":
            param = f"{where}[{i}].type"
            raise bad_field(
                param, f"{param} {shown(part.get('type'))} is not supported: {TEXT_ONLY}.", code="unsupported_value"
            )
        parts.append(fields.read(PART, part, f"{where}[{i}]")["text"])
    return "".join(parts)


def _max_tokens(values: Mapping[str, Any]) -> int | None:
    old: int | None = values["max_tokens"]
    new: int | None = values["max_completion_tokens"]
    if None not in (old, new) and old != new:
        raise bad_field("max_tokens", "max_tokens and max_completion_tokens are given, and differ; give one.")
    return new if new is not None else old


def encode_chat(model: Model, messages: Sequence[Mapping[str, str]], name: str) -> list[int]:
    """Return the prompt of a conversation.

    Raises:
        RequestError: a base model, or messages in an order that the chat format does not have.
        UsageError: a model without a tokenizer.
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


async def complete(host: EngineHost, http: HttpRequest) -> Response:
    """Answer a conversation."""
    values = fields.read(CHAT, await json_body(http))
    host.check_name(values["model"])
    engine = host.engine
    messages = read_messages(values["messages"])
    if values["top_logprobs"] is not None and not values["logprobs"]:
        raise bad_field("top_logprobs", "top_logprobs needs logprobs true.")
    params = {
        **sampling(values, engine.sampling, seed=engine.model.options.seed),
        "max_tokens": _max_tokens(values),
        "logprobs": (values["top_logprobs"] or 0) if values["logprobs"] else None,
    }
    spec, extension = grammar(values["response_format"]), Extension.of(values["mixq"])
    count = values["n"]
    prompt_length = 0

    def make(model: Model) -> list[Request]:
        nonlocal prompt_length
        ids = encode_chat(model, messages, host.name)
        prompt_length = len(ids)
        return [
            Request(ids, choice(params, i), grammar=spec, reuse=extension.cache, experts=extension.experts)
            for i in range(count)
        ]

    reply = _Reply(host.name, tokenizer_of(engine.model), values, extension)
    if values["stream"]:
        return await sse(host, make, lambda answers: reply.chunks(answers, prompt_length))
    async with host.answers(make) as answers:
        results = await answers.results(count)
    done = [result.done for result in results]
    return json_reply(
        {
            "id": reply.id,
            "object": "chat.completion",
            "created": reply.created,
            "model": host.name,
            "choices": [reply.choice(i, each) for i, each in enumerate(done)],
            "usage": Usage.of(prompt_length, done).as_dict(),
        }
    )


class _Reply:
    """Writes one reply, whole or in chunks."""

    def __init__(self, model: str, tokenizer: Tokenizer, values: Mapping[str, Any], extension: Extension) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._model = model
        self._tokenizer = tokenizer
        self._logprobs: bool = values["logprobs"]
        self._count: int = values["n"]
        self._include_usage = bool(values["stream_options"] and values["stream_options"]["include_usage"])
        self._extension = extension

    def choice(self, index: int, done: Done) -> dict[str, Any]:
        """Return a whole answer."""
        extra = {"mixq": self._end_of(done)} if self._extension.given else {}
        return {
            "index": index,
            "message": {"role": "assistant", "content": done.text, "refusal": None},
            "logprobs": self._logprobs_of(done.tokens),
            "finish_reason": finish_reason(done),
            **extra,
        }

    async def chunks(self, answers: Answers, prompt_length: int) -> AsyncIterator[bytes]:
        """Yield an answer, or several, as server-sent events."""
        for index in range(self._count):
            yield self._chunk([_choice(index, {"role": "assistant", "content": ""})])
        finished = []
        async for batch in answers.batches():
            out = []
            for index, happened in batch:
                if isinstance(happened, Done):
                    finished.append(happened)
                if isinstance(happened, Token):
                    out += self._token(index, happened)
                elif isinstance(happened, Done):
                    out += self._last(index, happened)
                elif isinstance(happened, PromptProgress) and self._extension.given:
                    progress = {"prompt_progress": {"done": happened.done, "total": happened.total}}
                    out.append(self._chunk([_choice(index, {})], progress))
            if out:
                yield b"".join(out)
        if self._include_usage:
            yield self._chunk([], usage=Usage.of(prompt_length, finished).as_dict())

    def _token(self, index: int, token: Token) -> list[bytes]:
        experts = {"experts": [token.experts]} if self._extension.experts else None
        if not token.text and not self._logprobs and experts is None:
            return []
        delta = {"content": token.text}
        return [self._chunk([_choice(index, delta, logprobs=self._logprobs_of([token]))], experts)]

    def _last(self, index: int, done: Done) -> list[bytes]:
        chunks = [self._chunk([_choice(index, {"content": done.tail})])] if done.tail else []
        end = self._end_of(done) if self._extension.given else None
        return [*chunks, self._chunk([_choice(index, {}, finish_reason(done))], end)]

    def _end_of(self, done: Done) -> dict[str, Any]:
        return {"stats": done.stats.as_dict()}

    def _chunk(
        self,
        choices: list[dict[str, Any]],
        mixq: Mapping[str, Any] | None = None,
        *,
        usage: Mapping[str, Any] | None = None,
    ) -> bytes:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self._model,
            "choices": choices,
        }
        if self._include_usage:
            chunk["usage"] = usage
        if mixq is not None:
            chunk["mixq"] = mixq
        return event(chunk)

    def _logprobs_of(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": [self._logprob_of(token) for token in tokens], "refusal": None}

    def _logprob_of(self, token: Token) -> dict[str, Any]:
        top = [self._one(token_id, logprob) for token_id, logprob in token.top_logprobs]
        assert token.logprob is not None, "asked for"
        return {**self._one(token.id, token.logprob), "top_logprobs": top}

    def _one(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelled = list(self._tokenizer.piece_bytes(token_id))
        return {"token": self._tokenizer.token_text(token_id), "logprob": logprob, "bytes": spelled}


def _choice(
    index: int, delta: Mapping[str, Any], reason: str | None = None, *, logprobs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def tokenizer_of(model: Model) -> Tokenizer:
    """Return a model's tokenizer; raises UsageError where it has none."""
    if model.folder.tokenizer_path is None:
        raise UsageError("This model has no tokenizer: it takes token ids, at /v1/completions.")
    return model.tokenizer
