"""Ollama's own client library: chat, generate, the lists, errors."""

from __future__ import annotations

import json

import ollama
import pytest

from tests.server.running import Running

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
COLD = {"temperature": 0}


@pytest.fixture
def client(demo: Running) -> ollama.Client:
    return ollama.Client(host=demo.url)


def test_chat(client: ollama.Client) -> None:
    reply = client.chat("demo", messages=[{"role": "user", "content": QUESTION}], options=COLD)
    assert reply.message.content == ANSWER
    assert reply.done
    assert reply.done_reason == "stop"
    assert reply.eval_count == 8
    assert reply.prompt_eval_count == 14


def test_a_streamed_chat(client: ollama.Client) -> None:
    parts = list(client.chat("demo:latest", [{"role": "user", "content": QUESTION}], stream=True, options=COLD))
    assert "".join(part.message.content or "" for part in parts) == ANSWER
    assert len(parts) > 5
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_generate(client: ollama.Client) -> None:
    assert client.generate("demo", QUESTION, options=COLD).response == ANSWER
    parts = list(client.generate("demo", QUESTION, stream=True, options={**COLD, "num_predict": 3}))
    assert "".join(part.response for part in parts) == "The capital of"
    assert parts[-1].done_reason == "length"
    raw = client.generate("demo", "[INST] What is the capital of France? [/INST]", raw=True, options=COLD)
    assert raw.response.strip() == ANSWER
    assert client.generate("demo", "").done_reason == "load"


def test_options_become_sampling(client: ollama.Client) -> None:
    hot = {"temperature": 5.0, "num_predict": 8, "repeat_penalty": 1.1, "top_k": 50, "num_ctx": 2048}
    texts = [client.generate("demo", "Once", raw=True, options={**hot, "seed": seed}).response for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    stopped = client.generate("demo", QUESTION, options={**COLD, "stop": [" France"]})
    assert stopped.response == "The capital of"


def test_a_format_is_kept_to(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"large": {"type": "boolean"}},
        "required": ["large"],
        "additionalProperties": False,
    }
    reply = client.chat("demo", [{"role": "user", "content": QUESTION}], format=schema, options=COLD)
    assert isinstance(json.loads(reply.message.content or "")["large"], bool)


def test_the_lists(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == ["demo"]
    assert (client.list().models[0].size or 0) > 1_000_000
    assert [model.model for model in client.ps().models] == ["demo"]
    shown = client.show("demo")
    assert shown.modelinfo is not None
    assert shown.modelinfo["mixtral.expert_count"] == 8
    assert shown.details is not None
    assert shown.details.family == "mixtral"
    assert (shown.details.parameter_size or "").endswith("M")


def test_version(demo: Running) -> None:
    assert demo.get("/api/version").json() == {"version": "0.1.0"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_gpu": 1}, "options.num_gpu is not supported"),
        ({"num_ctx": 4096}, "the server's is 2048"),
        ({"mirostat": 2}, "options.mirostat is not supported"),
        ({"top_p": 0.0}, "options.top_p"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    client: ollama.Client, options: dict[str, float], words: str
) -> None:
    with pytest.raises(ollama.ResponseError, match=words) as caught:
        client.generate("demo", QUESTION, options=options)
    assert caught.value.status_code == 400


def test_what_the_model_cannot_do_is_refused(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="Model ") as caught:
        client.chat("llama3", [{"role": "user", "content": QUESTION}])
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="think is not supported"):
        client.chat("demo", [{"role": "user", "content": QUESTION}], think=True)
    with pytest.raises(ollama.ResponseError, match="suffix is not supported"):
        client.generate("demo", QUESTION, suffix="end")
    with pytest.raises(ollama.ResponseError, match="Unknown endpoint /api/embed"):
        client.embed("demo", "text")
