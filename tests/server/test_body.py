"""Requests as pydantic models: what is accepted, and that every refusal is an error of ours with the field's path."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from mixq.server import app, ollama_body, openai_body, tokens
from mixq.server.body import Body, parse
from mixq.server.errors import RequestError
from mixq.server.openai_body import ChatBody, CompletionBody

HELLO = {"messages": [{"role": "user", "content": "hi"}]}
SCHEMAS: list[tuple[type[Body], dict[str, Any]]] = [
    (ChatBody, HELLO),
    (CompletionBody, {"prompt": "hi"}),
    (ollama_body.ChatBody, HELLO),
    (ollama_body.GenerateBody, {}),
    (ollama_body.ShowBody, {}),
    (tokens.TokenizeBody, {}),
    (tokens.DetokenizeBody, {"tokens": []}),
    (app.ReloadBody, {"vram": None}),
]
NESTED = [("mixq", openai_body.Extension), ("stream_options", openai_body.StreamOptions)]
STRANGE = json.loads(
    r"""[
    null, true, false, 0, -1, 1.0, 1.5, 9223372036854775808, 1e300, -1e300, "", "x", "1", "\ud800", [], [null], [true],
    [1.0], [[]],
    ["\ud800"], [{}], [{"role": 1}], [{"role": "user", "content": [{}]}], {}, {"x": 1}, {"\ud800": "\ud800"},
    [{"role": "user", "content": [5]}], {"type": "\ud800"}, {"1": null}, {"type": "json_schema", "json_schema": {}},
    {"type": "json_schema", "json_schema": {"schema": 1}}
    ]"""
)
STRANGE.append(10**400)


def read(schema: type[Body], document: dict[str, Any]) -> Any:
    return parse(schema, json.dumps(document).encode())


def refusal(schema: type[Body], document: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(schema, document)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(("schema", "least"), SCHEMAS, ids=[schema.__name__ for schema, _ in SCHEMAS])
def test_no_value_of_any_field_is_more_than_refused(schema: type[Body], least: dict[str, Any]) -> None:
    for name in (*schema.names(), *schema.unused, "\ud800"):
        for value in STRANGE:
            try:
                read(schema, {**least, name: value})
            except RequestError as error:
                f"{error.status:d} {error.param} {error.text}".encode()


@pytest.mark.parametrize("field", ["max_tokens", "top_k", "seed", "n"])
def test_whole_floats_are_whole_numbers(field: str) -> None:
    body = read(ChatBody, {**HELLO, field: 3.0})
    assert getattr(body, field) == 3
    assert type(getattr(body, field)) is int
    assert "a whole number from" in refusal(ChatBody, {**HELLO, field: 3.5}).message
    assert "not true" in refusal(ChatBody, {**HELLO, field: True}).message


def test_a_message_has_the_bounds_and_the_value() -> None:
    error = refusal(CompletionBody, {"prompt": "hi", "logprobs": "x"})
    assert error.message == 'logprobs must be a whole number from 0 to 20, not "x".'
    assert error.param == "logprobs"


def test_null_is_the_default_where_the_interface_has_it() -> None:
    assert read(CompletionBody, {"prompt": "hi", "max_tokens": None, "n": None, "stop": None}).max_tokens == 16
    assert read(ChatBody, {**HELLO, "stream_options": None}).stream_options.include_usage is False
    for field in ("model", "mixq", "top_k", "messages"):
        assert "not null" in refusal(ChatBody, {**HELLO, field: None}).message


@pytest.mark.parametrize(("name", "nested"), NESTED)
def test_unknown_fields_are_refused_at_every_depth(name: str, nested: type[Body]) -> None:
    known = min(nested.names())
    error = refusal(ChatBody, {**HELLO, name: {known[:-1]: True}})
    assert (error.param, error.code) == (f"{name}.{known[:-1]}", "unknown_parameter")
    assert error.message == f"Unknown field {name}.{known[:-1]}. Did you mean {known!r}?"


def test_neutral_values_of_unsupported_fields_are_accepted() -> None:
    read(
        ChatBody, {**HELLO, "tools": [], "tool_choice": "auto", "store": False, "audio": None, "user": {"any": "value"}}
    )
    error = refusal(ChatBody, {**HELLO, "store": 0})  # 0 == False, and yet not false
    assert (error.param, error.code) == ("store", "unsupported_parameter")


@pytest.mark.parametrize(
    "document",
    [
        {"messages": [{}] * 300_000},
        {"messages": [{"role": "user", "content": [{}] * 300_000}]},
        {**HELLO, "stop": [1] * 300_000},
        {**HELLO, "logit_bias": {str(i): "x" for i in range(80_000)}},
        {str(i): i for i in range(80_000)},
    ],
    ids=["messages", "parts", "stop", "logit_bias", "unknown"],
)
def test_the_first_error_ends_the_reading(document: dict[str, Any]) -> None:
    """A megabyte of errors is refused in about the time that its JSON takes."""
    text = json.dumps(document).encode()
    began = time.process_time()
    json.loads(text)
    alone = time.process_time() - began
    began = time.process_time()
    with pytest.raises(RequestError):
        parse(ChatBody, text)
    assert time.process_time() - began < 10 * alone + 0.1
