"""The KV caches that answers run in, kept afterwards so that a prompt which begins alike runs only what is new.

Contract: a pool of a fixed number of conversations. `take` gives the one that saves most: its own beginning is taken
over where the prompt goes on from it, copied where another conversation would be lost; else the one that was used least
recently is begun anew. One thread uses a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixq.engine.session import common_prefix
from mixq.model.kv_cache import KVCache

WORTH_SHARING = 16
"""Tokens below which a common beginning is run anew: every chat begins alike."""


class Conversation:
    """A KV cache, and the ids of which it holds the first.

    Attributes:
        ids: the prompt and what was answered; the cache holds `kv_cache.length` of them.
        busy: an answer is running in it.
        used: when it was given out last, as a count.
    """

    def __init__(self, kv_cache: KVCache) -> None:
        self.kv_cache = kv_cache
        self.ids: list[int] = []
        self.busy = False
        self.used = 0

    def shared(self, prompt_ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt it holds; the prompt's last must run in any case."""
        return min(common_prefix(self.ids, prompt_ids), self.kv_cache.length, len(prompt_ids) - 1)


class ConversationPool:
    """So many conversations, made as they are needed.

    Args:
        count: at most.
        new_kv_cache: makes one.
    """

    def __init__(self, count: int, new_kv_cache: Callable[[], KVCache]) -> None:
        self._count = count
        self._new_kv_cache = new_kv_cache
        self._conversations: list[Conversation] = []
        self._clock = 0

    def shared(self, prompt_ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt some conversation holds."""
        return max((conversation.shared(prompt_ids) for conversation in self._conversations), default=0)

    def take(self, prompt_ids: Sequence[int], *, reuse: bool = True) -> Conversation:
        """Return a conversation for a prompt, busy from now on; its cache holds what need not be run.

        Raises:
            DoesNotFitError: no memory is left for another one.
        """
        best = max(self._conversations, key=lambda c: (c.shared(prompt_ids), not c.busy), default=None)
        shared = best.shared(prompt_ids) if best is not None and reuse else 0
        if best is None or shared < WORTH_SHARING:
            return self._begin(self._spare(), prompt_ids, 0)
        # Most of it would be lost if another prompt went on in it, unless there is none other.
        goes_on = not best.busy and 2 * shared >= best.kv_cache.length
        if goes_on or (not best.busy and self._idle() == [best] and len(self._conversations) == self._count):
            return self._begin(best, prompt_ids, shared)
        spare = self._spare(besides=best)
        spare.kv_cache.truncate(0)
        spare.kv_cache.copy_prefix(best.kv_cache, shared)
        return self._begin(spare, prompt_ids, shared)

    def release(self, conversation: Conversation) -> None:
        """Keep a conversation whose answer has ended."""
        conversation.busy = False

    @property
    def kept(self) -> int:
        """Conversations that hold something and are not busy."""
        return sum(1 for c in self._conversations if not c.busy and c.kv_cache.length)

    @property
    def busy_positions(self) -> int:
        """Positions of KV caches in which answers are running."""
        return sum(c.kv_cache.length for c in self._conversations if c.busy)

    def _begin(self, conversation: Conversation, prompt_ids: Sequence[int], shared: int) -> Conversation:
        self._clock += 1
        conversation.busy, conversation.used = True, self._clock
        conversation.kv_cache.truncate(shared)
        conversation.ids = list(prompt_ids)
        return conversation

    def _spare(self, besides: Conversation | None = None) -> Conversation:
        """Return one that is not there yet, else the one that has not been used for longest."""
        if len(self._conversations) < self._count:
            self._conversations.append(Conversation(self._new_kv_cache()))
            return self._conversations[-1]
        return min((c for c in self._idle() if c is not besides), key=lambda c: c.used)

    def _idle(self) -> list[Conversation]:
        return [conversation for conversation in self._conversations if not conversation.busy]
