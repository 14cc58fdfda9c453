"""The server under load: 64 clients at a queue of 16, 300 hang-ups, SIGTERM in the middle of it."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import mixq
from tests.accept.tables import markdown, write
from tests.checkpoints import write_tiny_mixtral
from tests.server import hang_ups
from tests.server.running import ENDLESS, Gate, running, wait_until
from tests.server.test_command import KEY, Process

pytestmark = pytest.mark.accept
CLIENTS, QUEUE, SEQUENCES = 64, 16, 4
HANG_UPS = 100
SUBJECTS = ("France", "Italy", "Spain", "Japan", "Egypt", "Peru", "Norway", "Kenya")


def question(i: int) -> dict[str, Any]:
    content = f"What is the capital of {SUBJECTS[i % 8]}?" if i % 2 else f"What is {i} + {i * 3 % 17}?"
    return {
        "messages": [{"role": "user", "content": content}],
        "temperature": 1.5,
        "seed": i,
        "max_tokens": 40,
        "mixq": {"cache": False},
    }


def concurrent_clients() -> tuple[Counter[int], int]:
    """Return how often which status came, and how many of the answers were not the serial ones."""
    path = "/v1/chat/completions"
    with running(mixq.load(sequences=SEQUENCES), queue=QUEUE, reuse=False) as server:

        def text(reply: httpx.Response) -> str:
            return str(reply.json()["choices"][0]["message"]["content"])

        serial = [text(server.post(path, question(i))) for i in range(CLIENTS)]
        begin = threading.Barrier(CLIENTS)

        def ask(i: int) -> httpx.Response:
            begin.wait()
            return server.post(path, question(i))

        with ThreadPoolExecutor(CLIENTS) as pool:
            replies = list(pool.map(ask, range(CLIENTS)))
        wait_until(server.idle)
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 503)
        others = sum(reply.status_code == 200 and text(reply) != serial[i] for i, reply in enumerate(replies))
        return Counter(reply.status_code for reply in replies), others


def all_hang_ups(folder: Path) -> list[list[object]]:
    """Return a row for each place where clients hang up."""
    model = mixq.load(folder, context=2048, sequences=2)
    gate = Gate(model)
    with running(model, queue=2 * HANG_UPS) as server:
        alone = [hang_ups.ask(server, [*hang_ups.SHORT, 8 + i]) for i in range(2)]
        begun = hang_ups.handles()
        rows: list[list[object]] = []
        assert hang_ups.in_queue(server, gate, HANG_UPS) == alone
        rows.append(["queue", HANG_UPS, 0, "freed while no pass ran; the two answers in front of them are unchanged"])
        for place, hang_up, most in (("prefill", hang_ups.in_prefill, 1), ("decode", hang_ups.in_decode, 2)):
            after = hang_up(server, gate, HANG_UPS)
            assert max(after) <= most
            rows.append([place, HANG_UPS, max(after), f"passes of a {'chunk' if place == 'prefill' else 'token'}"])
        assert [hang_ups.ask(server, [*hang_ups.SHORT, 8 + i]) for i in range(2)] == alone
        state = server.state()
        assert state.finished["cancelled"] == 3 * HANG_UPS
        assert (state.queued, state.running, state.busy_positions) == (0, 0, 0)
        wait_until(lambda: all(now <= then for now, then in zip(hang_ups.handles(), begun, strict=True)))
    return rows


def stop_under_load() -> float:
    """Return the seconds from SIGTERM to the end, with answers running, others waiting."""
    process = Process("--queue", "16", MIXQ_API_KEY=KEY)

    def ask(_: int) -> str:
        with httpx.stream(
            "POST",
            f"{process.url}/v1/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json={**ENDLESS, "prompt": "Once", "stream": True, "logprobs": 0},
            timeout=60,
        ) as reply:
            return [line for line in reply.iter_lines() if line][-1]

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, i) for i in range(12)]
        headers = {"Authorization": f"Bearer {KEY}"}
        wait_until(lambda: httpx.get(f"{process.url}/mixq/status", headers=headers).json()["running"] == 4)
        began = time.perf_counter()
        assert process.end(signal.SIGTERM) == 0
        seconds = time.perf_counter() - began
        assert all("the server is stopping" in each.result() for each in asked)
    return seconds


def test_under_load(tmp_path: Path) -> None:
    statuses, others = concurrent_clients()
    write_tiny_mixtral(tmp_path / "tiny", tokenizer=False, max_position_embeddings=4096)
    rows = all_hang_ups(tmp_path / "tiny")
    seconds = stop_under_load()
    write(
        "server",
        "The server under load",
        f"{CLIENTS} clients send requests at once, seeded and without prefix reuse, {SEQUENCES} answers at a time and "
        f"a queue of {QUEUE}: each gets the text that it would get alone, or 503 with Retry-After. Then clients "
        "hang up, half of them while streaming; the second table shows how many passes still ran for them, and nothing "
        "is left behind (no request, position, thread or open file). Then SIGTERM with 12 streams open. Made by "
        "`make accept`.",
        markdown(
            ["clients", "same text as alone", "503", "other text"],
            [[CLIENTS, statuses[200] - others, statuses[503], others]],
        ),
        markdown(["hang-ups during", "count", "most passes after one", ""], rows),
        markdown(["SIGTERM with 12 streams open", ""], [["seconds until the process has ended", f"{seconds:.1f}"]]),
    )
    assert others == 0
    assert set(statuses) <= {200, 503}
    assert statuses[200] >= QUEUE
    assert seconds <= 5
