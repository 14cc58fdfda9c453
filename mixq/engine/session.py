"""One conversation with a loaded model, whose KV cache is kept between its turns.

Contract: a turn runs only what the KV cache does not hold already. Answers are the events of `mixq.engine.events`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mixq.engine.answer import Task
from mixq.engine.events import Done, Event, Notice, Token
from mixq.engine.generate import generate
from mixq.engine.sampling import SamplingParams
from mixq.model.kv_cache import KVCache
from mixq.text.grammar import GrammarSpec

if TYPE_CHECKING:
    from mixq.engine.model import Messages, Model


class Session:
    """One conversation: its KV cache, and the ids that the cache holds."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kv_cache: KVCache | None = None
        self._cached_ids: list[int] = []

    def chat(self, messages: Messages, **options: Any) -> Iterator[Event]:
        """Answer `messages`; what they share with the last call is not run again. See `Model.chat`."""
        return self.answer(self.model.encode_chat(messages), continues_text=False, **options)

    def answer(
        self,
        prompt_ids: Sequence[int],
        *,
        continues_text: bool,
        cancel: threading.Event | None = None,
        experts: bool = False,
        grammar: GrammarSpec | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Answer exact ids. The prompt is checked now, the model runs as the iterator is read.

        Args:
            prompt_ids: the whole prompt.
            continues_text: keep the space in front of the first word (completion), or take it off (a reply).
            cancel: ends the answer when set.
            experts: let tokens say which experts answered for them.
            grammar: what the text must be.
            sampling: fields of `SamplingParams`.
        """
        sampling.setdefault("seed", self.model.options.seed)
        task = self.model.task(
            prompt_ids,
            SamplingParams.from_kwargs(**sampling),
            continues_text=continues_text,
            grammar=grammar,
            show_experts=experts,
        )
        return self._run(task, cancel)

    def _run(self, task: Task, cancel: threading.Event | None) -> Iterator[Event]:
        model = self.model
        if self.kv_cache is None:
            self.kv_cache = model.new_kv_cache()
        shared = common_prefix(self._cached_ids, task.prompt_ids)
        self.kv_cache.truncate(min(shared, len(task.prompt_ids) - 1, self.kv_cache.length))
        self._cached_ids = list(task.prompt_ids)  # the tokens that follow are added as they are run
        for event in generate(model.network, self.kv_cache, task, cancel=cancel, experts=model.placement.offload):
            yield from map(Notice, model.notices())
            if isinstance(event, Done):
                model.note_answer(event)
            elif isinstance(event, Token):
                self._cached_ids.append(event.id)
            yield event


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many ids `a` and `b` begin with alike."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
