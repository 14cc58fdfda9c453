"""Mistral's own client library, with nothing changed but the server's address."""

from __future__ import annotations

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from tests.server.running import Running

CHEESE = "What is the best French cheese?"


@pytest.fixture
def client(demo: Running) -> Mistral:
    return Mistral(api_key="none", server_url=demo.url)


def test_a_chat(client: Mistral) -> None:
    reply = client.chat.complete(model="open-mixtral-8x7b", messages=[{"role": "user", "content": CHEESE}])
    assert reply.choices[0].message is not None
    assert reply.choices[0].message.content
    assert reply.usage.completion_tokens


def test_a_streamed_chat(client: Mistral) -> None:
    parts = []
    for chunk in client.chat.stream(
        model="open-mixtral-8x7b",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
    ):
        parts.append(str(chunk.data.choices[0].delta.content or ""))
    assert "".join(parts) == "The capital of France is Paris."
    assert len(parts) > 5


def test_seed_is_theirs_too(client: Mistral) -> None:
    def text(seed: int) -> object:
        reply = client.chat.complete(
            model="demo",
            messages=[{"role": "user", "content": CHEESE}],
            random_seed=seed,
            temperature=1.5,
            max_tokens=12,
        )
        assert reply.choices[0].message is not None
        return reply.choices[0].message.content

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(6)}) > 1


def test_models_list(client: Mistral) -> None:
    listed = client.models.list()
    assert [model.id for model in listed.data or []] == ["demo", "open-mixtral-8x7b"]
    assert client.models.retrieve(model_id="demo").id == "demo"


def test_what_the_model_cannot_do_is_refused_by_name(client: Mistral) -> None:
    with pytest.raises(SDKError, match="safe_prompt"):
        client.chat.complete(model="demo", messages=[{"role": "user", "content": CHEESE}], safe_prompt=True)
    with pytest.raises(SDKError, match="response_format"):
        client.chat.complete(
            model="demo", messages=[{"role": "user", "content": CHEESE}], response_format={"type": "json_schema"}
        )
