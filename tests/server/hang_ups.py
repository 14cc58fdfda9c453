"""Clients that go away: in the queue, while their prompt runs, while their answer comes.

Passes of the model are let through one by one, so that nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.server.running import ENDLESS, Gate, Running, events, wait_until

PATH = "/v1/completions"
LONG = list(range(3, 63)) * 30  # 1800 ids: four chunks
SHORT = [5, 6, 7]


def handles() -> tuple[int, int]:
    """Return how many threads and open files there are, without the threads that prepare requests: two at most."""
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("mixq-prepare")]
    return len(threads), len(os.listdir("/proc/self/fd"))


def ask(server: Running, prompt: list[int]) -> list[str]:
    """Return the ids of a short greedy answer, as texts: the model has no tokenizer."""
    reply = server.post(
        PATH, {"prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 0, "mixq": {"cache": False}}
    )
    assert reply.status_code == 200, reply.text
    tokens: list[str] = reply.json()["choices"][0]["logprobs"]["tokens"]
    return tokens


def _endless(prompt: list[int], stream: bool) -> dict[str, Any]:
    return {**ENDLESS, "prompt": prompt, "stream": stream, "logprobs": 0, "mixq": {"cache": False}}


def _over(server: Running, gate: Gate, client: socket.socket) -> int:
    """Hang up while no pass begins, then let all go on; return how many passes were still run."""
    client.close()
    wait_until(lambda: not server.host._live)
    before = gate.passes
    gate.open()
    wait_until(server.idle)
    return gate.passes - before


def in_decode(server: Running, gate: Gate, count: int) -> list[int]:
    """Hang up in the middle of answers; return the passes after each."""
    after = []
    for i in range(count):
        stream = i % 2 == 0
        before = gate.passes
        client = server.begin(PATH, _endless(SHORT, stream))
        if stream:
            events(client, 3)
        else:
            wait_until(lambda before=before: gate.passes > before + 3)  # type: ignore[misc]
        gate.close()
        gate.wait()
        after.append(_over(server, gate, client))
    return after


def in_prefill(server: Running, gate: Gate, count: int) -> list[int]:
    """Hang up between the chunks of prompts; return the passes after each."""
    after = []
    for i in range(count):
        gate.close()
        client = server.begin(PATH, _endless(LONG, i % 2 == 0))
        gate.wait()
        gate.let(1 + i % 2)
        after.append(_over(server, gate, client))
    return after


def take_in(server: Running, gate: Gate, count: int) -> None:
    """Wait until so many requests are being answered, at a gate that lets nothing through."""
    wait_until(lambda: server.state().running + server.state().queued == count)
    gate.wait()
    while server.state().running < count:  # the thread looks at the queue between two passes
        gate.let(1)


def in_queue(server: Running, gate: Gate, count: int) -> list[list[str]]:
    """Hang up while nothing has begun, behind answers that go on; return those."""
    gate.close()
    sequences = server.host.engine.batcher.sequences
    with ThreadPoolExecutor(sequences) as pool:
        running = [pool.submit(ask, server, [*SHORT, 8 + i]) for i in range(sequences)]
        take_in(server, gate, sequences)
        clients = [server.begin(PATH, _endless(SHORT, i % 2 == 0)) for i in range(count)]
        wait_until(lambda: server.state().queued == count)
        for client in clients:
            client.close()
        wait_until(lambda: server.state().queued == 0)  # freed while not one pass has run
        gate.open()
        answers = [each.result() for each in running]
    wait_until(server.idle)
    return answers
