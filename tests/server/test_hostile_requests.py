"""Requests that mean harm, or are broken: an error that names the cause, never 500, and the server goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.running import Running

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def goes_on(demo: Running) -> Iterator[None]:
    """After each test the server answers, and nothing runs on."""
    yield
    assert demo.post(CHAT, HELLO).status_code == 200
    demo.wait(demo.idle)


def send(demo: Running, body: bytes, path: str = CHAT) -> tuple[int, dict[str, Any]]:
    """Post a body as it is; return status and error."""
    status, headers, reply = demo.request(f"POST {path} HTTP/1.1\nHost: localhost\nContent-Length: {len(body)}", body)
    assert headers["content-type"] == "application/json"
    return status, json.loads(reply)["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no body"),
        (b"   ", "no body"),
        (b"{", "not JSON"),
        (b"hello", "not JSON: Expecting value, line 1, column 1"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"model": "demo", "model": "demo"}', "occurs twice"),
        (b'{"messages": [{"role": "user", "role": "user"}]}', "occurs twice"),
        (b'{"temperature": NaN}', "NaN is not a number"),
        (b'{"temperature": Infinity}', "Infinity is not a number"),
        (b'{"temperature": -Infinity}', "-Infinity is not a number"),
        (b'{"temperature": 1e309}', "a number is too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": "\xff"}', "not UTF-8: byte 7"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deep"),
        (b'{"a": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}", "nested too deep"),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "nested too deep"),
        (b"[" * 1_000_000, "nested too deep"),
        (b'{"a": "' + b"x" * 100, "not JSON"),
        (b'{"a": "\n"}', "not JSON"),
    ],
    ids=range(21),
)
def test_what_is_no_json(demo: Running, body: bytes, words: str) -> None:
    status, error = send(demo, body)
    assert status == 400
    assert words in error["message"]


def test_half_a_character_in_a_prompt_is_a_character(demo: Running) -> None:
    body = rb'{"prompt": "a\ud800b", "max_tokens": 1, "echo": true}'
    status, _, reply = demo.request(f"POST {COMPLETION} HTTP/1.1\nHost: localhost\nContent-Length: {len(body)}", body)
    assert status == 200
    assert json.loads(reply)["choices"][0]["text"].startswith("a\ud800b")


def test_a_body_of_more_than_a_megabyte(demo: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\nHost: localhost\n"
    assert demo.request(f"{head}Content-Length: {MEGABYTE + 1}", b"")[0] == 413
    assert demo.request(f"{head}Content-Length: {10**15}", b"{}")[0] == 413
    chunks = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert demo.request(f"{head}Transfer-Encoding: chunked", chunks * 17 + b"0\r\n\r\n")[0] == 413
    assert demo.request(f"{head}Transfer-Encoding: chunked", chunks * 17)[0] == 413
    assert demo.request(f"{head}Content-Length: {3 * MEGABYTE}", b" " * (3 * MEGABYTE))[0] == 413
    just = json.dumps({"messages": [{"role": "user", "content": ""}]}).encode()
    just = just.replace(b'"content": ""', b'"content": "' + b"a " * ((MEGABYTE - len(just)) // 2) + b'"')
    status, error = send(demo, just)
    assert (status, error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "0x10", "+5", "5, 6", "", "9" * 30])
def test_a_content_length_that_is_none(demo: Running, length: str) -> None:
    status, _, reply = demo.request(f"POST {CHAT} HTTP/1.1\nHost: localhost\nContent-Length: {length}", b"{}")
    assert status in (400, 413)
    assert "Content-Length" in json.loads(reply)["error"]["message"] or status == 413


def test_a_doubled_or_missing_content_length(demo: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\nHost: localhost\n"
    status, _, reply = demo.request(f"{head}Content-Length: 2\nContent-Length: 3", b"{}")
    assert status == 400
    assert b"conflicting Content-Length" in reply
    status, _, reply = demo.request(head, b"")
    assert status == 400
    assert b"no body" in reply
    assert demo.request(f"{head}Transfer-Encoding: gzip", b"{}")[0] == 501
    assert demo.request(f"{head}Transfer-Encoding: chunked", b"zz\r\n{}\r\n")[0] == 400


def test_headers_of_a_hundred_kilobytes(demo: Running) -> None:
    assert demo.request(f"GET /health HTTP/1.1\nHost: localhost\nX-Long: {'x' * 100_000}")[0] == 431
    many = "\n".join(f"X-{i}: {'y' * 90}" for i in range(1000))
    assert demo.request(f"GET /health HTTP/1.1\nHost: localhost\n{many}")[0] == 431


@pytest.mark.parametrize(
    "data", [b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"HELO me\r\n\r\n", b"\x00" * 100]
)
def test_what_is_no_http(demo: Running, data: bytes) -> None:
    assert demo.raw(data, shut=True)[0] in (0, 400)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models/demo", 405, "GET"),
        ("GET", "/v1/model", 404, "/v1/models"),
        ("GET", "/../../etc/passwd", 404, "Unknown endpoint"),
        ("GET", "/page/%2e%2e%2fapp.py", 404, "no"),
        ("GET", "/page/app.py", 404, "does not have this file"),
        ("GET", "/v1/embeddings", 404, "Unknown endpoint /v1/embeddings"),
        ("POST", "/v1/chat/completions?api_key=x", 400, "must not have a query"),
    ],
)
def test_addresses_that_are_none(demo: Running, method: str, path: str, status: int, words: str) -> None:
    found, _, body = demo.request(f"{method} {path} HTTP/1.1\nHost: localhost\nContent-Length: 2", b"{}")
    assert found == status
    assert words in json.loads(body)["error"]["message"]


def refused(demo: Running, path: str, document: Any, param: str) -> str:
    """Post what is refused; return the message."""
    reply = demo.post(path, document)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    message: str = error["message"]
    return message


NUMBERS = {
    "temperature": (CHAT, {-1}),
    "top_p": (CHAT, {-1, 0}),
    "top_k": (CHAT, {-1, 2**63}),
    "min_p": (CHAT, {-1}),
    "repetition_penalty": (CHAT, {-1, 0}),
    "presence_penalty": (CHAT, set()),
    "frequency_penalty": (CHAT, set()),
    "seed": (CHAT, {-1}),
    "random_seed": (CHAT, {-1}),
    "max_tokens": (CHAT, {-1, 0}),
    "max_completion_tokens": (CHAT, {-1, 0}),
    "n": (CHAT, {-1, 0}),
    "top_logprobs": (CHAT, {-1}),
    "logprobs": (COMPLETION, {-1}),
}
NOT_NULL = ("top_k", "min_p", "repetition_penalty")


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_has_bounds_and_a_kind(demo: Running, field: str) -> None:
    path, low = NUMBERS[field]
    document: dict[str, Any] = {**HELLO, "logprobs": True} if path == CHAT else {"prompt": "hi", "max_tokens": 1}
    for value in (*low, 2**63, 10**30, "1", True, [1], {}):
        if value is True and field == "logprobs" and path == CHAT:
            continue
        message = refused(demo, path, {**document, field: value}, field)
        assert field in message
    if field in NOT_NULL:
        refused(demo, path, {**document, field: None}, field)
    else:
        assert demo.post(path, {**document, field: None}).status_code == 200
    if field not in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        refused(demo, path, {**document, field: 1.5}, field)


@pytest.mark.parametrize(
    ("extra", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "no format for tools"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"audio": {}}, "audio", "only text"),
        ({"modalities": ["text", "audio"]}, "modalities", "only text"),
        ({"store": True}, "store", "nothing is stored"),
        ({"safe_prompt": True}, "safe_prompt", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"seed": 1, "random_seed": 2}, "random_seed", "differ"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"stop": [""]}, "stop[0]", "1 to 256"),
        ({"stop": ["x"] * 17}, "stop", "up to 16"),
        ({"stop": "x" * 300}, "stop", "256"),
        ({"stop": [1]}, "stop[0]", "must be a string"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "-100 to 100"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "number"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        ({"response_format": {}}, "response_format.type", "missing"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
        ({"mixq": {"expert": True}}, "mixq.expert", "Did you mean 'experts'"),
        ({"model": 5}, "model", "must be a string"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "tools"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "system, user or assistant"),
        ({"messages": [{"role": "user", "content": "x", "nme": "y"}]}, "messages[0].nme", "Unknown field"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name", "not supported"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages[0].content[0].type",
            "image_url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing"),
    ],
    ids=range(37),
)
def test_what_cannot_be_followed_is_refused_by_name(
    demo: Running, extra: dict[str, Any], param: str, words: str
) -> None:
    assert words in refused(demo, CHAT, {**HELLO, **extra}, param)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [[1], [1.5]]}, "prompt[1]"),
        ({"prompt": ["a"] * 69}, "prompt"),
        ({"messages": []}, "messages"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
    ],
    ids=range(11),
)
def test_completions_too(demo: Running, extra: dict[str, Any], param: str) -> None:
    refused(demo, COMPLETION, {"prompt": "a", "max_tokens": 1, **extra}, param)


@pytest.mark.parametrize("prompt", [[-1], [10**9], [10**30], [[1], []], [1536]], ids=range(5))
def test_ids_outside_the_vocabulary(demo: Running, prompt: list[Any]) -> None:
    reply = demo.post(COMPLETION, {"prompt": prompt, "max_tokens": 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_schemas_that_cannot_be_followed(demo: Running) -> None:
    for schema in ({"type": "nothing"}, {"$ref": "https://evil.example/schema"}, {"pattern": "(" * 50}, {"enum": []}):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        reply = demo.post(CHAT, {**HELLO, "response_format": wanted})
        assert reply.status_code in (200, 400), reply.text
        if reply.status_code == 400:
            assert "schema" in reply.json()["error"]["message"]


def test_the_token_addresses(demo: Running) -> None:
    assert demo.post("/tokenize", {"prompt": "</s>"}).json()["tokens"] == [2]
    spelled = demo.post("/tokenize", {"prompt": "a</s>b", "add_special_tokens": False}).json()["tokens"]
    assert 2 not in spelled
    assert demo.post("/detokenize", {"tokens": spelled}).json()["prompt"] == "a</s>b"
    parsed = demo.post("/tokenize", {"prompt": "a</s>b", "parse_special": True}).json()["tokens"]
    assert 2 in parsed
    assert parsed[0] == 1
    chat = demo.post("/tokenize", {"messages": HELLO["messages"]}).json()
    assert chat["tokens"][0] == 1
    assert chat["count"] == len(chat["tokens"])
    for document in ({}, {"prompt": "a", "content": "b"}, {"prompt": 5}, {"prompt": "a", "add_special": True}):
        assert demo.post("/tokenize", document).status_code == 400
    for tokens in ("a", [-1], [1536], [True], [1.5], None, ["1"]):
        assert demo.post("/detokenize", {"tokens": tokens}).status_code == 400
    info = demo.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
