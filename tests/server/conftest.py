"""The demo model behind a server, once for all tests, on a loopback port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mixq
from tests.checkpoints import write_tiny_mixtral
from tests.server.running import Running, running


@pytest.fixture(scope="session")
def demo_model() -> mixq.Model:
    return mixq.load(sequences=4)


@pytest.fixture(scope="session")
def demo(demo_model: mixq.Model) -> Iterator[Running]:
    """The shipped demo model, which chats; it answers to a second name too."""
    with running(demo_model, aliases=("open-mixtral-8x7b",)) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral without a tokenizer: token ids alone."""
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_mixtral(path, tokenizer=False, max_position_embeddings=4096)
    return path


@pytest.fixture
def server() -> Iterator[Running]:
    """A server of a test's own, four answers at once and a queue of eight."""
    with running(mixq.load(sequences=4), queue=8) as server:
        yield server
