"""`mixq serve` as a process: what it says, what it refuses, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mixq.cli.main import exit_code
from mixq.server import run
from mixq.system import paths
from tests.server.running import ENDLESS

KEY = "a-key-that-nobody-may-see"


class Process:
    """A `mixq serve`, and what it has said so far."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mixq", "serve", str(paths.demo_source()), "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.said = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if "Ctrl-C stops." in line:
                break
        found = re.search(r" at (http://\S+:\d+)$", self.said, re.MULTILINE)
        assert found, self.said
        self.url = found[1]

    def end(self, *signals: int) -> int:
        """Send signals; return the exit code, and keep what was said."""
        for each in signals:
            self.process.send_signal(each)
        out, err = self.process.communicate(timeout=25)  # the server itself closes idle connections after 30 s
        assert out == ""
        self.said += err
        return self.process.returncode


@pytest.fixture
def process() -> Iterator[Process]:
    started = Process(MIXQ_API_KEY=KEY)
    yield started
    started.process.kill()
    started.process.communicate()


def test_it_says_how_to_try_it_and_never_its_key(process: Process) -> None:
    assert "Serving demo at http://127.0.0.1:" in process.said
    assert "chat template mistral-v1" in process.said
    assert '-H "Authorization: Bearer $MIXQ_API_KEY"' in process.said
    pid = process.process.pid
    assert KEY not in Path(f"/proc/{pid}/cmdline").read_text()
    asked = httpx.post(
        f"{process.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {KEY}"},
        json={"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0},
        timeout=60,
    )
    assert asked.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert httpx.get(f"{process.url}/v1/models").status_code == 401
    assert process.end(signal.SIGINT) == 0
    assert "POST /v1/chat/completions 200" in process.said
    assert "Traceback" not in process.said
    assert KEY not in process.said
    assert "France" not in process.said.split("Ctrl-C stops.")[1]


def test_sigterm_ends_streams_with_an_error_and_does_not_wait_for_slow_clients(process: Process) -> None:
    port = int(process.url.rsplit(":", 1)[1])
    with (
        httpx.stream(
            "POST",
            f"{process.url}/v1/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json={**ENDLESS, "prompt": "Once", "stream": True, "logprobs": 0},
            timeout=60,
        ) as reply,
        socket.create_connection(("127.0.0.1", port)) as half,
        socket.create_connection(("127.0.0.1", port)) as slow,
    ):
        half.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        lines = (
            "POST /v1/completions HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {KEY}",
            "Content-Length: 9",
        )
        slow.sendall("\r\n".join((*lines, "", "")).encode())
        told = reply.iter_lines()
        assert next(told).startswith("data: {")
        process.process.send_signal(signal.SIGTERM)
        last = [line for line in told if line][-1]
        assert last.startswith('data: {"error":{"message":"The answer was interrupted: the server is stopping.')
        assert process.end() == 0
    assert "Traceback" not in process.said


def test_a_second_signal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(run.os, "_exit", codes.append)
    server = run.Server(run.uvicorn.Config(lambda: None), None)  # type: ignore[arg-type]
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, codes) == (True, [])
    server.handle_exit(signal.SIGTERM, None)
    assert codes == [143]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "needs an API key"),
        (["--host", "::"], "needs an API key"),
        (["--host", "192.0.2.1"], "needs an API key"),
        (["--cors-origin", "*"], "needs an API key"),
        (["--cors-origin", "example.org"], "is not an origin"),
        (["--cors-origin", "https://example.org/path"], "is not an origin"),
        (["--port", "70000"], "--port is 70000"),
        (["--queue", "-1"], "--queue is -1"),
        (["--sequences", "9"], "sequences is 9"),
        (["--api-key", "two words"], "The API key must be"),
        (["--api-key", ""], "The API key must be"),
        (["--host", "192.0.2.1", "--api-key", KEY], "cannot be used"),
    ],
)
def test_what_makes_no_sense_ends_with_2(capfd: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert exit_code(["serve", str(paths.demo_source()), *arguments]) == 2
    said = capfd.readouterr().err
    assert words in said
    assert KEY not in said
    assert "two words" not in said


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exit_code(["serve", "/no/such/model", "--port", str(port)]) == 2
    assert f"Port {port} is in use." in capfd.readouterr().err


def test_a_model_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["serve", "/no/such/model", "--port", "0"]) == 3
    assert "neither a folder" in capfd.readouterr().err


def test_a_key_from_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mixq.cli.serve import _key

    file = tmp_path / "key"
    file.write_text(f"{KEY}\nsecond line\n")
    assert _key(None, file) == KEY
    assert exit_code(["serve", "--api-key-file", str(file), "--api-key", "x"]) == 2
    assert exit_code(["serve", "--api-key-file", str(tmp_path / "none")]) == 5
    file.write_bytes(b"\xff\xfe\n")
    assert exit_code(["serve", "--api-key-file", str(file)]) == 2
    assert "key" in capfd.readouterr().err
