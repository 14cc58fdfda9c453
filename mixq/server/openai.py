"""OpenAI's API, as clients of OpenAI and Mistral use it: /v1/chat/completions and /v1/completions.

Contract: `n` answers to a request, as one document or as server-sent events. Choice i of a prompt is drawn with seed +
i. Content is text; images, audio and tools are refused by name. Responses have the field `mixq` if the request has it.

The prompt of /v1/completions is a text, a list of texts, a list of ids, or a list of such lists; choice i of prompt p
has index p * n + i. With `echo` the text starts with the prompt; with `logprobs` too, the prompt's tokens are scored,
the first with null, as lm_eval's local-completions expects. Log probabilities are float32, before sampling; a token's
value is the same in `token_logprobs` and in `top_logprobs`.
"""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.answer import Request
from mixq.engine.events import Done, Event, PromptProgress, Token
from mixq.engine.model import Model
from mixq.engine.sampling import SamplingParams
from mixq.errors import MixqError
from mixq.server.body import read
from mixq.server.engine_host import EngineHost
from mixq.server.errors import bad_field, openai_error
from mixq.server.openai_body import ChatBody, CompletionBody, Shared
from mixq.server.replies import Document, Reply, answer, finish_reason
from mixq.server.tokens import encode_chat, encode_text, tokenizer_of
from mixq.text.tokenizer import StreamDecoder


async def chat(host: EngineHost, http: HttpRequest) -> Response:
    body = await read(ChatBody, http)
    host.check_name(body.model)
    return await answer(host, ChatReply(host, body), stream=body.stream)


async def complete(host: EngineHost, http: HttpRequest) -> Response:
    body = await read(CompletionBody, http)
    host.check_name(body.model)
    if body.scores_prompt and body.stream:
        raise bad_field(
            "echo",
            "echo with logprobs is not supported in a stream; set stream to false.",
            code="unsupported_parameter",
        )
    most = host.capacity // body.n
    if len(body.prompt) > most:
        asked = f"prompt has {len(body.prompt)} entries with {body.n} choices each"
        raise bad_field("prompt", f"{asked}; this server accepts {most} at once.")
    return await answer(host, CompletionReply(host, body), stream=body.stream)


class OpenAIReply(Reply):
    """A request to either endpoint.

    Args:
        prefix: of the response's id.
        sampling: parameters besides those that both endpoints have.
    """

    media_type = "text/event-stream"
    prefix, suffix = b"data: ", b"\n\n"
    end = b"data: [DONE]\n\n"
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, host: EngineHost, body: Shared, prefix: str, **sampling: Any) -> None:
        engine = host.engine
        self.host = host
        self.shared = body
        self.scores: bool = sampling["logprobs"] is not None
        self.prompt_tokens = 0  # of all prompts; set by `requests`
        self._params = {**body.sampling(engine.sampling, seed=engine.model.options.seed), **sampling}
        self._grammar = body.grammar()
        self._extended = "mixq" in body.model_fields_set
        self._finished: list[Done] = []
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": host.name}

    def request(self, ids: Sequence[int], index: int, **options: Any) -> Request:
        """Return the request for a prompt's choice number `index`; each choice has a different seed."""
        seed = self._params["seed"]
        params = {**self._params, "seed": None if seed is None else (seed + index) % 2**63}
        extension = self.shared.mixq
        return Request(
            ids,
            SamplingParams.from_kwargs(**params),
            grammar=self._grammar,
            reuse=extension.cache,
            experts=extension.experts,
            **options,
        )

    @abstractmethod
    def whole_choice(self, index: int, answers: Sequence[Done]) -> Document:
        """Return the whole answer number `index`, without the extension's fields."""

    @abstractmethod
    def choice(self, index: int, text: str | None, reason: str | None = None, logprobs: Any = None) -> Document:
        """Return a part of an answer; `text` is None if only its state changes."""

    @abstractmethod
    def token_logprobs(self, index: int, token: Token) -> Document:
        """Return the log probabilities of a streamed token."""

    def last_choices(self, index: int, done: Done) -> list[Document]:
        """Return the last parts of an answer."""
        return [self.choice(index, done.tail, finish_reason(done))]

    def whole(self, answers: Sequence[Done]) -> Document:
        self._finished.extend(answers)
        choices = [self.whole_choice(index, answers) for index in range(len(answers))]
        if self._extended:
            for choice, done in zip(choices, answers, strict=True):
                choice["mixq"] = {"stats": done.stats.as_dict()}
        return {"object": self.whole_object, **self._head, "choices": choices, "usage": self._usage()}

    def part(self, index: int, event: Event) -> list[Document]:
        if isinstance(event, Token):
            experts = {"experts": [event.experts]} if self.shared.mixq.experts else None
            if not event.text and not self.scores and experts is None:
                return []
            logprobs = self.token_logprobs(index, event) if self.scores else None
            return [self.chunk(self.choice(index, event.text, logprobs=logprobs), mixq=experts)]
        if isinstance(event, Done):
            self._finished.append(event)
            *parts, last = self.last_choices(index, event)
            stats = {"stats": event.stats.as_dict()} if self._extended else None
            return [*map(self.chunk, parts), self.chunk(last, mixq=stats)]
        if isinstance(event, PromptProgress) and self._extended:
            progress = {"prompt_progress": {"done": event.done, "total": event.total}}
            return [self.chunk(self.choice(index, None), mixq=progress)]
        return []

    def closing(self) -> list[Document]:
        """Return the chunk with the usage, if it was requested."""
        return [self.chunk(usage=self._usage())] if self.shared.stream_options.include_usage else []

    def chunk(
        self, *choices: Document, mixq: Mapping[str, Any] | None = None, usage: Document | None = None
    ) -> Document:
        chunk = {"object": self.chunk_object, **self._head, "choices": choices}
        if self.shared.stream_options.include_usage:
            chunk["usage"] = usage
        if mixq is not None:
            chunk["mixq"] = mixq
        return chunk

    def _usage(self) -> Document:
        """Return the number of tokens of a request; a prompt with several answers counts once."""
        completion = sum(len(done.token_ids) for done in self._finished)
        cached = max((done.stats.cached_tokens for done in self._finished), default=0)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": min(cached, self.prompt_tokens)},
        }

    def error(self, error: MixqError) -> Document:
        return openai_error(error)


class ChatReply(OpenAIReply):
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, host: EngineHost, body: ChatBody) -> None:
        super().__init__(host, body, "chatcmpl", **body.limits())
        self._messages = body.messages
        self._tokenizer = tokenizer_of(host.engine.model)

    def requests(self, model: Model) -> list[Request]:
        """Return a request for each choice."""
        ids = encode_chat(model, self._messages, self.host.name)
        self.prompt_tokens = len(ids)
        return [self.request(ids, index) for index in range(self.shared.n)]

    def whole_choice(self, index: int, answers: Sequence[Done]) -> Document:
        done = answers[index]
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
        """Return the last parts of an answer: the rest of the text, then the reason."""
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


class CompletionReply(OpenAIReply):
    whole_object = chunk_object = "text_completion"

    def __init__(self, host: EngineHost, body: CompletionBody) -> None:
        super().__init__(
            host,
            body,
            "cmpl",
            max_tokens=body.max_tokens,
            logprobs=body.logprobs,
            # as OpenAI did: one token is scored even if it is the end token
            ignore_eos=body.scores_prompt and body.max_tokens == 1,
        )
        model = host.engine.model
        self._body = body
        self._tokenizer = model.tokenizer if model.prompting.has_text else None
        self._end_ids = frozenset(model.eos_token_ids)
        self._offsets: list[int] = []  # characters written of each streamed answer

    def requests(self, model: Model) -> list[Request]:
        """Return a request for each choice of each prompt."""
        prompts = [encode_text(model, prompt) if isinstance(prompt, str) else prompt for prompt in self._body.prompt]
        self.prompt_tokens = sum(map(len, prompts))
        scores = self._body.logprobs if self._body.scores_prompt else None
        return [
            self.request(ids, i, continues_text=True, prompt_logprobs=None if i else scores)
            for ids in prompts
            for i in range(self.shared.n)
        ]

    def whole_choice(self, index: int, answers: Sequence[Done]) -> Document:
        n, done = self.shared.n, answers[index]
        scored = answers[index - index % n].prompt_tokens  # all choices share the first one's prompt
        ended = bool(done.token_ids) and done.token_ids[-1] in self._end_ids
        strip = isinstance(self._body.prompt[index // n], str) and self._body.echo
        return {
            "index": index,
            "text": self._echoed(index) + done.text,
            "logprobs": self._logprobs([*scored, *done.tokens], strip=strip) if self.scores else None,
            "finish_reason": "stop" if ended else finish_reason(done),
        }

    def opening(self) -> list[Document]:
        """Return the prompts, if they were requested."""
        echoed = [self._echoed(index) for index in range(len(self._body.prompt) * self.shared.n)]
        self._offsets = [len(text) for text in echoed]
        return [self.chunk(self.choice(i, text)) for i, text in enumerate(echoed)] if self._body.echo else []

    def part(self, index: int, event: Event) -> list[Document]:
        chunks = super().part(index, event)
        if isinstance(event, Token):
            self._offsets[index] += len(event.text)
        return chunks

    def choice(self, index: int, text: str | None, reason: str | None = None, logprobs: Any = None) -> Document:
        return {"index": index, "text": text or "", "logprobs": logprobs, "finish_reason": reason}

    def token_logprobs(self, index: int, token: Token) -> Document:
        return {**self._logprobs([token], strip=False), "text_offset": [self._offsets[index]]}

    def _echoed(self, index: int) -> str:
        if not self._body.echo:
            return ""
        prompt = self._body.prompt[index // self.shared.n]
        if isinstance(prompt, str):
            return prompt
        return self._tokenizer.decode(prompt, strip_leading_space=False) if self._tokenizer is not None else ""

    def _logprobs(self, tokens: Sequence[Token], *, strip: bool) -> Document:
        """Return OpenAI's four lists; `strip` if the first text is a prompt's, without the tokenizer's space."""
        return {
            "tokens": [self._spelled(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": self._text_offsets(tokens, strip=strip),
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top_logprobs, (token.id, token.logprob)):
            top.setdefault(self._spelled(token_id), logprob)  # of two tokens with the same text, the more likely one
        return top

    def _spelled(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id) if self._tokenizer is not None else str(token_id)

    def _text_offsets(self, tokens: Sequence[Token], *, strip: bool) -> list[int]:
        """Return the number of characters before each token."""
        if self._tokenizer is None:
            return [0] * len(tokens)
        decoder = StreamDecoder(self._tokenizer, strip_leading_space=strip)
        offsets, end = [], 0
        for token in tokens:
            offsets.append(end)
            end += len(decoder.push(token.id))
        return offsets
