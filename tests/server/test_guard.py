"""Who may ask: names, origins, keys; nothing secret is written anywhere."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

import pytest

import mixq
from mixq.server import guard
from mixq.server.guard import Guard, Settings, is_loopback
from tests.server.running import Running, running

KEY = "a-key-of-a-test-0123456789"


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A server with a key and a site that may use it."""
    settings = Settings(api_key=KEY, cors_origins=("https://chat.example",), allowed_hosts=("Box.local",))
    with running(mixq.load(sequences=1), settings=settings) as server:
        yield server


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("LocalHost:1", 200),
        ("[::1]", 200),
        ("[::1]:8080", 200),
        ("127.1.2.3", 200),
        ("evil.com", 403),
        ("127.0.0.1.evil.com", 403),
        ("localhost.evil.com", 403),
        ("localhost.", 403),
        ("127.0.0.1.", 403),
        ("evil.com:127.0.0.1", 403),
        ("localhost@evil.com", 403),
        ("192.168.1.1", 403),
        ("0.0.0.0", 403),
        ("", 403),
        ("[evil.com]", 403),
    ],
)
def test_names_that_the_server_is_asked_by(demo: Running, host: str, status: int) -> None:
    for path in ("/v1/models", "/", "/health"):
        found, _, body = demo.request(f"GET {path} HTTP/1.1\nHost: {host}")
        assert found == status or (path == "/" and (found, status) == (404, 200))
        if status == 403:
            assert b"is not allowed" in body


def test_a_request_without_a_name_is_refused(demo: Running) -> None:
    assert demo.request("GET /health HTTP/1.1")[0] == 400
    assert demo.request("GET /health HTTP/1.0")[0] == 403
    assert demo.request("GET /health HTTP/1.1\nHost: localhost\nHost: localhost")[0] == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:1234", 200),
        ("https://localhost:1234", 200),
        ("http://localhost", 403),
        ("http://localhost:4321", 403),
        ("http://evil.com", 403),
        ("http://localhost:1234.evil.com", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("https://chat.example", 403),
        ("HTTP://LOCALHOST:1234", 200),
    ],
)
def test_pages_of_other_sites_are_refused(demo: Running, origin: str, status: int) -> None:
    found, headers, _ = demo.request(f"GET /v1/models HTTP/1.1\nHost: localhost:1234\nOrigin: {origin}")
    assert found == status
    assert not any(name.startswith("access-control") for name in headers)


def test_a_preflight_of_another_site_is_refused(demo: Running) -> None:
    found, headers, _ = demo.request(
        "OPTIONS /v1/chat/completions HTTP/1.1\nHost: localhost\nOrigin: http://evil.com\n"
        "Access-Control-Request-Method: POST"
    )
    assert found == 403
    assert not any(name.startswith("access-control") for name in headers)


def test_a_site_that_is_allowed_reads_answers(locked: Running) -> None:
    head = "HTTP/1.1\nHost: localhost\nOrigin: https://chat.example\n"
    found, headers, _ = locked.request(
        f"OPTIONS /v1/chat/completions {head}Access-Control-Request-Method: POST\n"
        "Access-Control-Request-Headers: authorization, content-type, a b"
    )
    assert found == 204
    assert headers["access-control-allow-origin"] == "https://chat.example"
    assert headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["vary"] == "Origin"
    found, headers, _ = locked.request(f"GET /v1/models {head}Authorization: Bearer {KEY}")
    assert (found, headers["access-control-allow-origin"]) == (200, "https://chat.example")
    assert locked.request("GET /health HTTP/1.1\nHost: localhost\nOrigin: https://other.example")[0] == 403
    # A browser shows the page why it was refused.
    assert locked.request(f"GET /v1/models {head}")[1]["access-control-allow-origin"] == "https://chat.example"


def test_another_name_can_be_allowed(locked: Running) -> None:
    assert locked.request("GET /health HTTP/1.1\nHost: box.local:80")[0] == 200


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Authorization: Bearer",
        "Authorization: Bearer wrong",
        f"Authorization: Bearer {KEY}x",
        f"Authorization: Bearer {KEY[:-1]}",
        f"Authorization: {KEY}",
        f"Authorization: Basic {KEY}",
        f"Authorization: Bearer {KEY.upper()}",
        f"X-Api-Key: {KEY}",
        f"Authorization: Bearer {KEY}\nAuthorization: Bearer {KEY}",
        "Authorization: Bearer \xe9\xff",
    ],
)
def test_without_the_key_nothing_is_answered(locked: Running, line: str) -> None:
    for path in ("/v1/models", "/metrics", "/mixq/status", "/api/tags", "/nothing"):
        found, headers, body = locked.request(f"GET {path} HTTP/1.1\nHost: localhost\n{line}")
        assert found == 401
        assert headers["www-authenticate"] == "Bearer"
        assert KEY.encode() not in body


def test_with_the_key_everything_is(locked: Running) -> None:
    for scheme in ("Bearer", "bearer"):
        assert locked.request(f"GET /metrics HTTP/1.1\nHost: localhost\nAuthorization: {scheme} {KEY}")[0] == 200


def test_a_key_in_the_address_is_no_key(locked: Running) -> None:
    assert locked.request(f"GET /v1/models?api_key={KEY} HTTP/1.1\nHost: localhost")[0] == 401
    assert KEY not in "".join(locked.log)


def test_health_and_page_need_no_key(locked: Running) -> None:
    assert locked.request("GET /health HTTP/1.1\nHost: localhost")[0] == 200
    assert locked.request("GET / HTTP/1.1\nHost: localhost")[0] in (200, 404)  # the page is a part of its own
    assert locked.request("GET /page/..%2f..%2fapp.py HTTP/1.1\nHost: localhost")[0] in (401, 404)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    class Hmac:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(guard, "hmac", Hmac)
    checked = Guard(lambda *_: None, Settings(api_key=KEY))  # type: ignore[arg-type,return-value]
    headers = guard.Headers({"authorization": f"Bearer {KEY}"})
    checked._check_key("/v1/models", headers)
    assert compared == [(32, 32)]  # digests, so that not even the length shows


def test_neither_keys_nor_prompts_are_logged(locked: Running, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "a prompt that is nobody's business"
    messages = [{"role": "user", "content": secret}]
    for body in (
        {"messages": messages, "max_tokens": 2},
        {"messages": messages, "max_tokens": -2},
        {"prompt": secret, "x": 1},
    ):
        locked.post("/v1/chat/completions", body)
    locked.post(f"/{secret}", {})
    written = "".join(locked.log) + "".join(capfd.readouterr())
    assert "/v1/chat/completions 200" in written
    assert "/v1/chat/completions 400" in written
    assert secret not in written
    assert KEY not in written


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("box", False),
    ],
)
def test_loopback_addresses(address: str, loopback: bool) -> None:
    assert is_loopback(address) == loopback


@pytest.mark.parametrize(
    ("name", "own"),
    [("10.0.0.7", True), ("localhost", True), ("[fe80::1]", True), ("evil.com", False), ("box", True), ("box.", False)],
)
def test_on_all_addresses_names_must_be_known(name: str, own: bool) -> None:
    open_to_all = Guard(lambda *_: None, Settings(host="0.0.0.0", api_key=KEY, allowed_hosts=("box",)))  # type: ignore[arg-type,return-value]
    assert open_to_all._is_own_name(name) == own
