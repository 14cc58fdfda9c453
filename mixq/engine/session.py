"""A conversation with a loaded model; its KV cache is kept between turns.

Contract: a turn runs only the tokens that the KV cache does not hold. Closing the iterator of an answer, or setting its
`cancel`, ends it within one token or one chunk of a prompt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mixq.engine.answer import Answer, Request, Task, step
from mixq.engine.events import Done, Event, Failed, Log, Notice
from mixq.engine.prompting import Messages, Prompting
from mixq.engine.sampling import SamplingParams
from mixq.engine.sequences import KeptSequence
from mixq.experts.telemetry import ExpertTelemetry
from mixq.model.kv_cache import KVCache
from mixq.model.mixtral import Mixtral
from mixq.text.grammar import GrammarSpec


class Session:
    """One conversation, and the KV cache that holds it.

    Args:
        network: runs the tokens.
        prompting: turns messages into token ids.
        new_kv_cache: makes an empty KV cache; called with the first answer.
        log: receives notices for the user, and the end of each answer.
        telemetry: counts where experts are computed; None on the CPU alone.
        seed: of answers without one.
    """

    def __init__(
        self,
        network: Mixtral,
        prompting: Prompting,
        new_kv_cache: Callable[[], KVCache],
        *,
        log: Log,
        telemetry: ExpertTelemetry | None = None,
        seed: int | None = None,
    ) -> None:
        self._network = network
        self._prompting = prompting
        self._new_kv_cache = new_kv_cache
        self._log = log
        self._telemetry = telemetry
        self._seed = seed
        self._sequence: KeptSequence | None = None

    def chat(self, messages: Messages, **options: Any) -> Iterator[Event]:
        """Answer `messages` as `Model.chat` does, without running again what they share with the last call."""
        return self.answer(self._prompting.encode_chat(messages), continues_text=False, **options)

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
        """Answer token ids. The prompt is checked now; the model runs while the iterator is read.

        Args:
            prompt_ids, continues_text, experts, grammar: fields of `mixq.engine.answer.Request`.
            cancel: ends the answer when set.
            sampling: fields of `SamplingParams`.
        """
        params = SamplingParams.from_kwargs(**{"seed": self._seed, **sampling})
        request = Request(prompt_ids, params, continues_text=continues_text, grammar=grammar, experts=experts)
        return self._events(self._prompting.task(request), cancel)

    def _events(self, task: Task, cancel: threading.Event | None) -> Iterator[Event]:
        if self._sequence is None:
            self._sequence = KeptSequence(self._new_kv_cache())
        self._sequence.begin(task.prompt_ids, self._sequence.shared(task.prompt_ids))
        answer = Answer(task, self._sequence, telemetry=self._telemetry)
        while not answer.finished:
            cancelled = cancel is not None and cancel.is_set()
            events = [answer.end("cancelled")] if cancelled else step(self._network, [answer]).events[0]
            yield from map(Notice, self._log.lines())
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Done):
                    self._log.last = event
                yield event
