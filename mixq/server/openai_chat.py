"""OpenAI's /v1/chat/completions, as the clients of OpenAI and Mistral call it.

Contract: a conversation in the model's own chat format, `n` answers to it, whole or as server-sent events. Choice i is
drawn with seed + i. Content is text; images, audio and tools are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.events import Done, Token
from mixq.engine.model import Model
from mixq.engine.request import Request
from mixq.server.answers import Result
from mixq.server.body import read
from mixq.server.engine_host import EngineHost
from mixq.server.openai_body import ChatBody
from mixq.server.openai_replies import OpenAIReply
from mixq.server.prompts import encode_chat, tokenizer_of
from mixq.server.replies import Document, answer, finish_reason


async def complete(host: EngineHost, http: HttpRequest) -> Response:
    """Answer a conversation."""
    body = await read(ChatBody, http)
    host.check_name(body.model)
    return await answer(host, ChatReply(host, body), stream=body.stream)


class ChatReply(OpenAIReply):
    """One request and its reply."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, host: EngineHost, body: ChatBody) -> None:
        super().__init__(host, body, "chatcmpl", **body.limits())
        self._messages = [message.model_dump() for message in body.messages]
        self._tokenizer = tokenizer_of(host.engine.model)

    def requests(self, model: Model) -> list[Request]:
        """Return a request for each choice."""
        ids = encode_chat(model, self._messages, self.host.name)
        self.prompt_tokens = len(ids)
        return [self.request(ids, index) for index in range(self.shared.n)]

    def whole_choice(self, index: int, results: Sequence[Result]) -> Document:
        done = results[index].done
        return {
            "index": index,
            "message": {"role": "assistant", "content": done.text, "refusal": None},
            "logprobs": self._logprobs(done.tokens) if self.scores else None,
            "finish_reason": finish_reason(done),
        }

    def opening(self) -> list[Document]:
        role = {"role": "assistant", "content": ""}
        return [self.chunk({**self.choice(index, None), "delta": role}) for index in range(self.shared.n)]

    def choice(self, index: int, text: str | None, reason: str | None = None, logprobs: Any = None) -> Document:
        delta = {} if text is None else {"content": text}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def last_choices(self, index: int, done: Done) -> list[Document]:
        """Return the last parts of an answer: what is left of the text, then the reason."""
        tail = [self.choice(index, done.tail)] if done.tail else []
        return [*tail, self.choice(index, None, finish_reason(done))]

    def token_logprobs(self, index: int, token: Token) -> Document:
        return self._logprobs([token])

    def _logprobs(self, tokens: Sequence[Token]) -> Document:
        return {"content": [self._logprob(token) for token in tokens], "refusal": None}

    def _logprob(self, token: Token) -> Document:
        assert token.logprob is not None, "asked for"
        top = [self._spelled(token_id, logprob) for token_id, logprob in token.top_logprobs]
        return {**self._spelled(token.id, token.logprob), "top_logprobs": top}

    def _spelled(self, token_id: int, logprob: float) -> Document:
        spelled = list(self._tokenizer.piece_bytes(token_id))
        return {"token": self._tokenizer.token_text(token_id), "logprob": logprob, "bytes": spelled}
