"""OpenAI's /v1/completions: texts or token ids that the model goes on from.

Contract: prompts may be a text, a list of texts, ids, or a list of ids; each has `n` choices, index prompt * n + i.
With `echo` the prompt stands in front of the text, and with `logprobs` its tokens are scored too, the first with null:
what lm_eval's local-completions reads. Log probabilities are float32 of the model's own distribution, and the likeliest
token's stands among the top ones with exactly the same bits.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.events import Done, PromptLogprobs, PromptProgress, Token
from mixq.engine.model import Model
from mixq.engine.request import Request
from mixq.server import fields
from mixq.server.engine_host import EngineHost
from mixq.server.errors import RequestError, bad_field, shown
from mixq.server.fields import Field
from mixq.server.json_body import json_body
from mixq.server.openai_stream import Usage, event, finish_reason, sse
from mixq.server.replies import json_reply
from mixq.server.sampling_fields import (
    MOST_LOGPROBS,
    RESPONSE_FORMAT,
    SHARED,
    Extension,
    choice,
    grammar,
    sampling,
)
from mixq.server.streams import Answers, Result
from mixq.text.stream import StreamDecoder
from mixq.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's

COMPLETION: fields.Schema = {
    **SHARED,
    "prompt": Field(lambda value, _: value, required=True),
    "max_tokens": Field(fields.whole(0, 2**31 - 1), default=DEFAULT_MAX_TOKENS, nullable=True),
    "logprobs": Field(fields.whole(0, MOST_LOGPROBS), nullable=True),
    "echo": Field(fields.flag, default=False, nullable=True),
    "response_format": Field(fields.nested(RESPONSE_FORMAT), nullable=True),
    **fields.refused("answers are not chosen among", "best_of", neutral=(1,)),
    **fields.refused("the model does not fill in the middle", "suffix", neutral=("",)),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: what the model reads.
        text: as the client wrote it; None for ids.
    """

    ids: Sequence[int]
    text: str | None = None


def read_prompts(value: Any) -> list[str | list[int]]:
    """Return the prompts of a request: each a text, or ids.

    Raises:
        RequestError: neither, or nothing.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise bad_field("prompt", f"prompt is {shown(value)}; it must be a text, token ids, or a list of either.")
    if all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        return [value]
    for i, each in enumerate(value):
        is_ids = isinstance(each, list) and all(isinstance(j, int) and not isinstance(j, bool) for j in each)
        if not isinstance(each, str) and not is_ids:
            raise bad_field(f"prompt[{i}]", f"prompt[{i}] is {shown(each)}; it must be a text or a list of token ids.")
    return value


def encode(model: Model, prompt: str | list[int]) -> Prompt:
    """Return a prompt as the model reads it: a text begins with the begin token, ids are taken as they are.

    Raises:
        RequestError: text for a model without a tokenizer, or no text.
    """
    if not isinstance(prompt, str):
        return Prompt(prompt)
    if model.folder.tokenizer_path is None:
        raise bad_field("prompt", "This model has no tokenizer: it takes token ids, not text.")
    ids = [*model.tokenizer.begin_ids, *model.tokenizer.encode(prompt)]
    if not ids:
        raise bad_field("prompt", "The prompt is empty.")
    return Prompt(ids, prompt)


async def complete(host: EngineHost, http: HttpRequest) -> Response:
    """Go on from prompts."""
    values = fields.read(COMPLETION, await json_body(http))
    host.check_name(values["model"])
    engine = host.engine
    asked = read_prompts(values["prompt"])
    each_has = values["n"]
    if len(asked) * each_has > host.capacity:
        most = host.capacity // each_has
        raise RequestError(
            400,
            f"prompt has {len(asked)} entries with {each_has} choices each; this server takes {most} at once.",
            param="prompt",
        )
    logprobs, echo = values["logprobs"], values["echo"]
    scores = echo and logprobs is not None
    if scores and values["stream"]:
        raise bad_field("echo", "echo with logprobs is not supported in a stream.", code="unsupported_parameter")
    params = {
        **sampling(values, engine.sampling, seed=engine.model.options.seed),
        "max_tokens": values["max_tokens"],
        "logprobs": logprobs,
        # Who asks for one token's score wants it whatever it is, as OpenAI gave it: the end token too.
        "ignore_eos": scores and values["max_tokens"] == 1,
    }
    spec, extension = grammar(values["response_format"]), Extension.of(values["mixq"])
    prompts: list[Prompt] = []

    def make(model: Model) -> list[Request]:
        prompts.extend(encode(model, prompt) for prompt in asked)
        return [
            Request(
                prompt.ids,
                choice(params, i),
                continues_text=True,
                prompt_logprobs=logprobs if scores and i == 0 else None,
                grammar=spec,
                reuse=extension.cache,
                experts=extension.experts,
            )
            for prompt in prompts
            for i in range(each_has)
        ]

    reply = _Reply(host.name, engine.model, values, extension)
    if values["stream"]:
        return await sse(host, make, lambda answers: reply.chunks(answers, prompts))
    async with host.answers(make) as answers:
        results = await answers.results(len(asked) * each_has)
    choices = await host.aside(lambda: reply.choices(results, prompts))
    usage = Usage.of(sum(len(prompt.ids) for prompt in prompts), [result.done for result in results])
    return json_reply({**reply.head, "choices": choices, "usage": usage.as_dict()})


class _Reply:
    """Writes one reply, whole or in chunks."""

    def __init__(self, name: str, model: Model, values: Mapping[str, Any], extension: Extension) -> None:
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self._tokenizer = model.tokenizer if model.folder.tokenizer_path is not None else None
        self._end_ids = frozenset(model.eos_token_ids)
        self._n: int = values["n"]
        self._echo: bool = values["echo"]
        self._logprobs: int | None = values["logprobs"]
        self._include_usage = bool(values["stream_options"] and values["stream_options"]["include_usage"])
        self._extension = extension

    def choices(self, results: Sequence[Result], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Return whole answers."""
        choices = []
        for index, result in enumerate(results):
            prompt, done = prompts[index // self._n], result.done
            shown_prompt = self._text_of(prompt) if self._echo else ""
            scored = results[index - index % self._n].prompt_tokens  # the first choice's prompt is everybody's
            ended = bool(done.token_ids) and done.token_ids[-1] in self._end_ids
            choices.append(
                {
                    "index": index,
                    "text": shown_prompt + done.text,
                    "logprobs": self._logprobs_of([*scored, *done.tokens], strip=prompt.text is not None)
                    if self._logprobs is not None
                    else None,
                    "finish_reason": "stop" if ended else finish_reason(done),
                    **({"mixq": {"stats": done.stats.as_dict()}} if self._extension.given else {}),
                }
            )
        return choices

    async def chunks(self, answers: Answers, prompts: Sequence[Prompt]) -> AsyncIterator[bytes]:
        """Yield answers as server-sent events."""
        offsets = [0] * (len(prompts) * self._n)
        if self._echo:
            for index in range(len(offsets)):
                text = self._text_of(prompts[index // self._n])
                offsets[index] = len(text)
                yield self._chunk([_choice(index, text)])
        finished = []
        async for batch in answers.batches():
            out = []
            for index, happened in batch:
                if isinstance(happened, Token):
                    out += self._token(index, happened, offsets[index])
                    offsets[index] += len(happened.text)
                elif isinstance(happened, Done):
                    finished.append(happened)
                    end = {"stats": happened.stats.as_dict()} if self._extension.given else None
                    out.append(self._chunk([_choice(index, happened.tail, finish_reason(happened))], end))
                elif isinstance(happened, PromptProgress) and self._extension.given:
                    progress = {"prompt_progress": {"done": happened.done, "total": happened.total}}
                    out.append(self._chunk([_choice(index, "")], progress))
                else:
                    assert not isinstance(happened, PromptLogprobs), "not asked for in a stream"
            if out:
                yield b"".join(out)
        if self._include_usage:
            usage = Usage.of(sum(len(prompt.ids) for prompt in prompts), finished)
            yield self._chunk([], usage=usage.as_dict())

    def _token(self, index: int, token: Token, offset: int) -> list[bytes]:
        experts = {"experts": [token.experts]} if self._extension.experts else None
        if not token.text and self._logprobs is None and experts is None:
            return []
        logprobs = None
        if self._logprobs is not None:
            logprobs = {**self._logprobs_of([token], strip=False), "text_offset": [offset]}
        return [self._chunk([_choice(index, token.text, logprobs=logprobs)], experts)]

    def _chunk(
        self,
        choices: list[dict[str, Any]],
        mixq: Mapping[str, Any] | None = None,
        *,
        usage: Mapping[str, Any] | None = None,
    ) -> bytes:
        extra = {"mixq": mixq} if mixq is not None else {}
        told = {"usage": usage} if self._include_usage else {}
        return event({**self.head, "choices": choices, **told, **extra})

    def _text_of(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.ids, strip_leading_space=False) if self._tokenizer is not None else ""

    def _logprobs_of(self, tokens: Sequence[Token], *, strip: bool) -> dict[str, Any]:
        """Return OpenAI's four lists; `strip` where the first text is a prompt's, without the tokenizer's space."""
        return {
            "tokens": [self._spelled(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": _offsets(self._tokenizer, tokens, strip=strip and self._echo),
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top_logprobs, (token.id, token.logprob)):
            top.setdefault(self._spelled(token_id), logprob)  # of two tokens that are spelled alike the likelier
        return top

    def _spelled(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id) if self._tokenizer is not None else str(token_id)


def _offsets(tokenizer: Tokenizer | None, tokens: Sequence[Token], *, strip: bool) -> list[int]:
    """Return how many characters stand in front of each token."""
    if tokenizer is None:
        return [0] * len(tokens)
    decoder = StreamDecoder(tokenizer, strip_leading_space=strip)
    offsets, end = [], 0
    for token in tokens:
        offsets.append(end)
        end += len(decoder.push(token.id))
    return offsets


def _choice(
    index: int, text: str, reason: str | None = None, *, logprobs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
