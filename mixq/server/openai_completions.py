"""OpenAI's /v1/completions: texts or token ids that the model continues.

Contract: prompts may be a text, a list of texts, ids, or a list of ids; each has `n` choices, index prompt * n + i.
With `echo` the text begins with the prompt, and with `logprobs` the prompt's tokens are scored too, the first with
null: what lm_eval's local-completions reads. Log probabilities are float32 of the model's own distribution; the most
likely token has the same bits here and among the top ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.events import Event, Token
from mixq.engine.model import Model
from mixq.engine.request import Request
from mixq.server.answers import Result
from mixq.server.body import read
from mixq.server.engine_host import EngineHost
from mixq.server.errors import bad_field
from mixq.server.openai_body import CompletionBody
from mixq.server.openai_replies import OpenAIReply
from mixq.server.prompts import encode_text
from mixq.server.replies import Document, answer, finish_reason
from mixq.text.stream import StreamDecoder


async def complete(host: EngineHost, http: HttpRequest) -> Response:
    """Continue prompts."""
    body = await read(CompletionBody, http)
    host.check_name(body.model)
    if body.scores_prompt and body.stream:
        raise bad_field("echo", "echo with logprobs is not supported in a stream.", code="unsupported_parameter")
    most = host.capacity // body.n
    if len(body.prompt) > most:
        asked = f"prompt has {len(body.prompt)} entries with {body.n} choices each"
        raise bad_field("prompt", f"{asked}; this server takes {most} at once.")
    return await answer(host, CompletionReply(host, body), stream=body.stream)


class CompletionReply(OpenAIReply):
    """One request and its reply."""

    whole_object = chunk_object = "text_completion"

    def __init__(self, host: EngineHost, body: CompletionBody) -> None:
        super().__init__(
            host,
            body,
            "cmpl",
            max_tokens=body.max_tokens,
            logprobs=body.logprobs,
            # To score one token whatever it is, the end token too, as OpenAI did.
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

    def whole_choice(self, index: int, results: Sequence[Result]) -> Document:
        n, done = self.shared.n, results[index].done
        scored = results[index - index % n].prompt_tokens  # all choices share the first one's prompt
        ended = bool(done.token_ids) and done.token_ids[-1] in self._end_ids
        strip = isinstance(self._body.prompt[index // n], str) and self._body.echo
        return {
            "index": index,
            "text": self._echoed(index) + done.text,
            "logprobs": self._logprobs([*scored, *done.tokens], strip=strip) if self.scores else None,
            "finish_reason": "stop" if ended else finish_reason(done),
        }

    def opening(self) -> list[Document]:
        """Return the prompts, where they are asked for."""
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
        """Return OpenAI's four lists; `strip` where the first text is a prompt's, without the tokenizer's space."""
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
            top.setdefault(self._spelled(token_id), logprob)  # of two tokens with one spelling the likelier
        return top

    def _spelled(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id) if self._tokenizer is not None else str(token_id)

    def _text_offsets(self, tokens: Sequence[Token], *, strip: bool) -> list[int]:
        """Return how many characters there are before each token."""
        if self._tokenizer is None:
            return [0] * len(tokens)
        decoder = StreamDecoder(self._tokenizer, strip_leading_space=strip)
        offsets, end = [], 0
        for token in tokens:
            offsets.append(end)
            end += len(decoder.push(token.id))
        return offsets
