"""One answer by itself, as an iterator of events.

Contract: closing the iterator or setting `cancel` ends it within one token or one prefill chunk. Several answers at
once are the business of `mixq.engine.batching`; both make them of `mixq.engine.answer`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from mixq.engine.answer import Answer, Task, pending_tensor
from mixq.engine.events import Event
from mixq.experts.offload import ExpertOffload
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache


class Network(Protocol):
    """What generating needs of a model."""

    def forward(self, chunks: Sequence[Chunk], *, all_logits: bool = False) -> Tensor:
        """Run tokens and return float32 logits."""
        ...

    def chosen_experts(self) -> list[list[tuple[int, ...]]]:
        """Return the experts of the last pass: of each of its tokens, layer by layer."""
        ...


def generate(
    network: Network,
    kv_cache: KVCache,
    task: Task,
    *,
    cancel: threading.Event | None = None,
    experts: ExpertOffload | None = None,
) -> Iterator[Event]:
    """Answer a prompt of which the first `kv_cache.length` tokens have been run already.

    Args:
        network: the model.
        kv_cache: of this conversation; at least the last prompt token must be new.
        task: what is to be answered.
        cancel: ends the answer when set.
        experts: what counts for the statistics where experts were computed.

    Raises:
        PromptError: the prompt is empty, does not fit into the context, or holds an id outside the vocabulary.
        ModelFileError: the logits are not finite.
    """
    answer = Answer(task, kv_cache, experts=experts)
    while not answer.finished:
        if cancel is not None and cancel.is_set():
            yield answer.end("cancelled")
            return
        chunk = Chunk(pending_tensor(answer), kv_cache)
        logits = network.forward([chunk], all_logits=answer.needs_all_logits)
        yield from answer.take(logits, network.chosen_experts()[-1] if task.show_experts else ())
