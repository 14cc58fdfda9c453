"""OpenAI's own client library against the server: chat, completions, streams, scores, JSON, errors."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest

from tests.server.running import Running

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
JANE: Any = [{"role": "user", "content": "Give me JSON for Jane, 30."}]


@pytest.fixture
def lenient(demo: Running) -> openai.OpenAI:
    """A client that does not check types: its own forbid what the interface has always sent, null among scores."""
    return openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def client(demo: Running) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{demo.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True, timeout=60
    )


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens == 8


def test_a_stream_says_the_same_with_usage_at_its_end(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=FRANCE, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert all(c.usage is None for c in chunks[:-1])


def test_without_the_extension_nothing_of_it_is_sent(client: openai.OpenAI) -> None:
    reply = client.chat.completions.with_raw_response.create(model="demo", messages=FRANCE, stream=True)
    assert "mixq" not in reply.http_response.read().decode()


def test_the_extension_tells_experts_progress_and_figures(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=FRANCE, stream=True, temperature=0, extra_body={"mixq": {"experts": True}}
        )
    )
    told = [chunk.model_extra["mixq"] for chunk in chunks if chunk.model_extra and "mixq" in chunk.model_extra]
    progress = [each["prompt_progress"] for each in told if "prompt_progress" in each]
    assert progress[-1]["done"] == progress[-1]["total"]
    experts = [token for each in told if "experts" in each for token in each["experts"]]
    assert len(experts) == 8
    assert {(len(token), len(token[0])) for token in experts} == {(5, 2)}
    assert told[-1]["stats"]["decode_tokens"] == 8
    assert told[-1]["stats"]["context_size"] == 2048


def test_logprobs(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="demo", messages=FRANCE, temperature=0, logprobs=True, top_logprobs=3, max_completion_tokens=4
    )
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 4
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert bytes(entry.bytes or []).decode() == entry.token
    spelled = b"".join(bytes(entry.bytes or []) for entry in content).decode()
    assert spelled.removeprefix(" ") == reply.choices[0].message.content


def test_choices_differ_and_seeds_repeat_them(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        reply = client.completions.create(
            model="demo",
            prompt="Once",
            n=3,
            seed=seed,
            temperature=2,
            max_tokens=8,
            extra_body={"mixq": {"cache": False}},
        )
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        return [choice.text for choice in reply.choices]

    assert texts(5) == texts(5)
    assert len(set(texts(5))) > 1
    assert texts(5)[1:] == texts(6)[:2]


def test_stop_ends_a_reply_in_front_of_it(client: openai.OpenAI) -> None:
    for stop in (" France", ["nothing", " France"]):
        reply = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0, stop=stop)
        assert reply.choices[0].message.content == "The capital of"
        assert reply.choices[0].finish_reason == "stop"


def test_json_mode(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="demo", messages=JANE, response_format={"type": "json_object"}, temperature=0
    )
    assert json.loads(reply.choices[0].message.content or "") == {"name": "Jane", "age": 30}


def test_a_schema_is_kept_to(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 10}, "large": {"type": "boolean"}},
        "required": ["capital", "large"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(model="demo", messages=FRANCE, response_format=wanted, seed=1)
    found = json.loads(reply.choices[0].message.content or "")
    assert set(found) == {"capital", "large"}
    assert isinstance(found["large"], bool)


def test_text_parts_and_a_developer_message(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "developer", "content": ""},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is the "}, {"type": "text", "text": "capital of France?"}],
        },
    ]
    assert (
        client.chat.completions.create(model="demo", messages=messages, temperature=0).choices[0].message.content
        == ANSWER
    )


def test_a_reply_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0).choices[0].message
    messages: Any = [*FRANCE, first, {"role": "user", "content": "What is 2 + 2?"}]
    again = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= 16


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="demo", prompt=["The capital of France is", "The capital of Italy is"], max_tokens=3, temperature=0
    )
    alone = client.completions.create(model="demo", prompt="The capital of Italy is", max_tokens=3, temperature=0)
    assert reply.choices[1].text == alone.choices[0].text
    assert reply.choices[0].text != reply.choices[1].text


def test_scores_of_a_prompt(lenient: openai.OpenAI, demo: Running) -> None:
    prompt = "The capital of France is"
    reply = lenient.completions.create(model="demo", prompt=prompt, max_tokens=2, temperature=0, echo=True, logprobs=2)
    choice = reply.choices[0]
    logprobs = choice.logprobs
    assert choice.text.startswith(prompt)
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    ids = demo.post("/tokenize", {"prompt": prompt}).json()["tokens"]
    assert len(logprobs.tokens) == len(ids) + 2 == len(logprobs.text_offset) == len(logprobs.top_logprobs)
    assert logprobs.token_logprobs[0] is None
    assert all(isinstance(each, float) and each <= 0 for each in logprobs.token_logprobs[1:])
    for i, token in enumerate(logprobs.tokens[1:], 1):
        begin = logprobs.text_offset[i]
        assert choice.text[begin:].startswith(token if i > 1 else token.removeprefix(" "))
    generated = logprobs.token_logprobs[-1]
    assert generated == max(logprobs.top_logprobs[-1].values())


def test_a_prompt_alone_can_be_scored(lenient: openai.OpenAI) -> None:
    choice = lenient.completions.create(
        model="demo", prompt=[1, 415, 556], max_tokens=0, echo=True, logprobs=0
    ).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == 3
    assert choice.finish_reason == "length"


def test_a_streamed_completion(lenient: openai.OpenAI) -> None:
    client = lenient
    fields: Any = {"model": "demo", "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**fields).choices[0]
    chunks = list(client.completions.create(**fields, stream=True, logprobs=1))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    offsets = [offset for c in chunks if (told := c.choices[0].logprobs) for offset in told.text_offset or []]
    assert offsets == sorted(offsets)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "open-mixtral-8x7b"]
    assert client.models.retrieve("demo").owned_by == "mixq"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-3.5-turbo")


def test_an_unknown_model_is_refused_and_the_served_one_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-3.5-turbo", messages=FRANCE)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert '"demo"' in str(caught.value)


def test_a_prompt_beyond_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt=[5] * 2049)
    assert caught.value.code == "context_length_exceeded"
    assert "2049" in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "one " * 3000}])


def test_asynchronous_requests_at_once(demo: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{demo.url}/v1", api_key="none", _strict_response_validation=True
        ) as client:

            async def one() -> str:
                parts = []
                stream = await client.chat.completions.create(model="demo", messages=FRANCE, temperature=0, stream=True)
                async for chunk in stream:
                    parts.append(chunk.choices[0].delta.content or "")
                return "".join(parts)

            return await asyncio.gather(*(one() for _ in range(8)))

    assert asyncio.run(ask()) == [ANSWER] * 8


def test_a_bias_and_penalties_are_heeded(client: openai.OpenAI, demo: Running) -> None:
    paris = demo.post("/tokenize", {"content": "Paris"}).json()["tokens"]
    reply = client.chat.completions.create(
        model="demo",
        messages=FRANCE,
        temperature=0,
        logit_bias={str(paris[0]): -100},
        presence_penalty=0.1,
        frequency_penalty=0,
    )
    assert "Paris" not in (reply.choices[0].message.content or "")
    assert math.isfinite(reply.created)
