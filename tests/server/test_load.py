"""More than can be answered at once, slow clients, a model that is loaded anew, and the end."""

from __future__ import annotations

import contextlib
import json
import socket
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mixq
from mixq.errors import DoesNotFitError
from mixq.server import engine_host, run
from mixq.server.guard import Settings
from mixq.server.protocol import WatchedProtocol
from tests.server.hang_ups import take_in
from tests.server.running import ENDLESS, Gate, Running, events, read_reply, rest, running, wait_until

PATH = "/v1/completions"


class Impatient(WatchedProtocol):
    """Gives clients half a second."""

    head_seconds = 0.5
    write_seconds = 0.5
    watch_seconds = 0.05


@pytest.fixture
def small(tiny: Path) -> Iterator[tuple[Running, Gate]]:
    """Two answers at once, a queue of three, impatient with clients."""
    model = mixq.load(tiny, context=4096, sequences=2)
    gate = Gate(model)
    with running(model, queue=3, protocol=Impatient, settings=Settings(body_seconds=0.5)) as server:
        yield server, gate
        gate.open()


def document(i: int = 0, tokens: int = 4) -> dict[str, Any]:
    return {
        "prompt": [5, 6, 7 + i],
        "max_tokens": tokens,
        "temperature": 1,
        "seed": i,
        "logprobs": 0,
        "mixq": {"cache": False},
    }


def told(reply: Any) -> list[str]:
    tokens: list[str] = reply.json()["choices"][0]["logprobs"]["tokens"]
    return tokens


def test_beyond_the_queue_clients_are_told_to_come_back(small: tuple[Running, Gate]) -> None:
    server, gate = small
    alone = [told(server.post(PATH, document(i))) for i in range(5)]
    gate.close()
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(server.post, PATH, document(i)) for i in range(2)]
        take_in(server, gate, 2)
        asked += [pool.submit(server.post, PATH, document(i)) for i in range(2, 5)]
        wait_until(lambda: server.state().queued == 3)
        for stream in (False, True):
            refused = server.post(PATH, {**document(), "stream": stream})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        assert server.post("/api/generate", {"prompt": "", "stream": False}).status_code == 200
        assert server.get("/health").json() == {"status": "ok"}
        assert server.get("/mixq/status").json()["queued"] == 3
        assert b"mixq_queued 3.0" in server.get("/metrics").content
        gate.open()
        assert [told(each.result()) for each in asked] == alone
    wait_until(server.idle)


def test_more_prompts_than_are_ever_taken_are_refused_for_good(small: tuple[Running, Gate]) -> None:
    server, _ = small
    reply = server.post(PATH, {**document(), "prompt": [[5]] * 6})
    assert reply.status_code == 400
    assert "accepts 5 at once" in reply.json()["error"]["message"]
    assert server.post(PATH, {**document(), "prompt": [[5]] * 5}).status_code == 200


def test_slow_senders_hold_up_nobody_and_are_dropped(small: tuple[Running, Gate]) -> None:
    server, _ = small
    slow = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(50)]
    for i, client in enumerate(slow):
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: " if i % 2 else b"")
    bodies = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(5)]
    for client in bodies:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert server.get("/health").status_code == 200
    assert server.post(PATH, document()).status_code == 200
    for client in slow:
        with client:
            assert read_reply(client)[0] == 0  # closed by the server
    for client in bodies:
        with client:
            status, _, reply = read_reply(client)
            assert status == 408
            assert b"did not arrive" in reply


def test_a_second_request_that_stays_half_is_dropped_too(small: tuple[Running, Gate]) -> None:
    server, _ = small
    with socket.create_connection(("127.0.0.1", server.port), 60) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HT")
        status, _, body = read_reply(client)
    assert status == 200
    assert body == b'{"status":"ok"}'


def test_slow_readers_hold_up_nobody_and_are_dropped(small: tuple[Running, Gate]) -> None:
    server, _ = small
    much = {**ENDLESS, "prompt": [5, 6, 7], "stream": True, "logprobs": 20, "n": 2}
    before = server.state().finished.get("cancelled", 0)
    clients = []
    for _ in range(2):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        body = json.dumps(much).encode()
        client.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), len(body)) + body
        )
        clients.append(client)
    assert server.get("/health").status_code == 200
    assert server.post(PATH, document()).status_code == 200  # behind them in the queue, and yet
    wait_until(lambda: not server.host._live)
    wait_until(server.idle)
    for client in clients:
        client.close()
    assert server.state().finished.get("cancelled", 0) == before + 4


class Loader:
    """Loads a model, as slowly as a test wishes, and refuses some options."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        import threading

        self.go = threading.Event()
        self.go.set()

    def __call__(self, options: Mapping[str, Any]) -> mixq.Model:
        self.asked.append(dict(options))
        assert self.go.wait(60)
        if options.get("vram") == 7:
            raise DoesNotFitError("7 bytes are not enough.")
        return mixq.load(self.folder, context=2048, device="sim", vram=options.get("vram") or "13MB")


def test_a_model_is_loaded_anew_while_the_server_says_so(tiny: Path) -> None:
    loader = Loader(tiny)
    with running(loader) as server:
        before = told(server.post(PATH, document()))
        assert server.get("/mixq/status").json()["vram"] == 13_000_000
        client = server.begin(PATH, {**ENDLESS, "prompt": [5], "stream": True, "logprobs": 0})
        events(client, 2)
        loader.go.clear()
        reply = server.post("/mixq/reload", {"vram": "14MB"})
        assert reply.status_code == 202
        assert reply.json()["loading"] is True
        with client:
            assert b'data: {"error":{"message":"The answer was interrupted: the model is being reloaded' in rest(client)
        wait_until(lambda: len(loader.asked) == 2)
        health = server.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert server.get("/mixq/status").json()["ready"] is False
        for refused in (
            server.post(PATH, document()),
            server.get("/v1/models"),
            server.post("/mixq/reload", {"vram": 1}),
        ):
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "model_loading"
        loader.go.set()
        wait_until(lambda: bool(server.get("/mixq/status").json()["ready"]))
        assert server.get("/mixq/status").json()["vram"] == 14_000_000
        assert told(server.post(PATH, document())) == before


def test_the_former_model_is_gone_before_the_next_is_loaded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads slowly would keep it in memory."""
    monkeypatch.setattr(engine_host, "LEAVE_SECONDS", 0.2)
    former: list[weakref.ref[mixq.Model]] = []
    left: list[int] = []

    class Counts(Loader):
        def __call__(self, options: Mapping[str, Any]) -> mixq.Model:
            left.append(sum(reference() is not None for reference in former))
            model = super().__call__(options)
            former.append(weakref.ref(model))
            return model

    with running(Counts(tiny)) as server:
        assert server.post(PATH, document()).status_code == 200
        body = json.dumps({**ENDLESS, "prompt": [5, 6, 7], "stream": True, "logprobs": 20, "n": 4}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % (PATH.encode(), len(body)) + body)
            wait_until(lambda: server.state().running > 0)
            wait_until(lambda: server.state().running == 0)  # written to the end, and not read
            assert server.host._live
            for size in ("14MB", "13MB"):
                assert server.post("/mixq/reload", {"vram": size}).status_code == 202
                wait_until(lambda: bool(server.get("/mixq/status").json()["ready"]))
    assert left == [0, 0, 0]


def test_a_split_that_fails_brings_the_former_back(tiny: Path) -> None:
    with running(Loader(tiny)) as server:
        assert server.post("/mixq/reload", {"vram": 7}).status_code == 202
        wait_until(lambda: bool(server.get("/mixq/status").json()["ready"]))
        found = server.get("/mixq/status").json()
        assert found["vram"] == 13_000_000
        assert "7 bytes are not enough." in found["notes"]
        assert server.post(PATH, document()).status_code == 200
        for wrong in (
            {},
            {"vram": "much"},
            {"vram": 0},
            {"vram": True},
            {"vram": 1, "ram": 2},
            {"vram": -5},
            {"vram": 1.5},
        ):
            assert server.post("/mixq/reload", wrong).status_code == 400
        assert server.get("/health").status_code == 200


def test_an_engine_that_fails_is_an_error_and_no_silence(tiny: Path) -> None:
    model = mixq.load(tiny, context=2048)
    gate = Gate(model)
    with running(model) as server:
        gate.close()
        client = server.begin(PATH, {**ENDLESS, "prompt": [5], "stream": True})
        gate.wait()
        server.host.engine.batcher.close("a test ends it", timeout=0)
        gate.open()
        with client:
            last = rest(client)
        assert b'"error"' in last
        assert b"a test ends it" in last
        assert b"[DONE]" not in last
        assert server.post(PATH, document()).status_code >= 500


def test_a_model_without_a_tokenizer_takes_ids(small: tuple[Running, Gate]) -> None:
    server, _ = small
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        (PATH, {"prompt": "hi"}),
        (PATH, {"prompt": [5], "stop": "x"}),
        ("/tokenize", {"prompt": "hi"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}),
    ):
        reply = server.post(path, body)
        assert reply.status_code == 400, path
        assert "tokenizer" in reply.text
    assert server.get("/tokenizer_info").status_code == 400
    assert server.get("/v1/models").json()["data"][0]["capabilities"]["completion_chat"] is False
    assert server.get("/mixq/status").json()["is_chat"] is False


def test_a_base_model_completes_and_does_not_chat() -> None:
    with running(mixq.load(template="none")) as server:
        messages = [{"role": "user", "content": "hi"}]
        for path in ("/v1/chat/completions", "/api/chat"):
            reply = server.post(path, {"messages": messages})
            assert reply.status_code == 400
            assert "base model" in reply.text
            assert "/v1/completions" in reply.text
        assert server.post(PATH, {"prompt": "The capital of", "max_tokens": 2}).status_code == 200
        raw = server.post("/api/generate", {"prompt": "The capital of", "stream": False, "options": {"num_predict": 2}})
        assert raw.json()["response"]


def test_streams_end_with_an_error_when_the_server_stops(small: tuple[Running, Gate]) -> None:
    server, gate = small
    events_client = server.begin(PATH, {**ENDLESS, "prompt": [5], "stream": True, "logprobs": 0})
    events(events_client, 2)
    gate.close()  # the engine says nothing any more
    with contextlib.closing(events_client):
        _stop(server)
        last = rest(events_client)
    gate.open()
    assert b'data: {"error":{"message":"The answer was interrupted: the server is stopping' in last


def _stop(server: Running) -> None:
    import asyncio

    async def stop() -> None:
        server.host.stop(run.STOPPING)

    loop = next(iter(server.host._live))._loop
    asyncio.run_coroutine_threadsafe(stop(), loop).result(60)
