"""The KV caches of answers, kept afterwards so that a prompt with the same beginning runs only its new tokens.

Contract: a pool of a fixed number of sequences. `take` returns the sequence that saves most tokens: it continues a
sequence that the prompt extends, or copies its beginning if continuing would lose another conversation, or else empties
the least recently used one. Only one thread uses a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixq.model.kv_cache import KVCache

WORTH_SHARING = 16
"""A common beginning of fewer tokens is run again: every chat starts alike."""


class KeptSequence:
    """A KV cache and its tokens.

    Attributes:
        ids: the prompt and the answer so far; the cache holds the first `kv_cache.length` of them.
        busy: an answer is running in it.
        used: when it was last taken, as a count.
    """

    def __init__(self, kv_cache: KVCache) -> None:
        self.kv_cache = kv_cache
        self.ids: list[int] = []
        self.busy = False
        self.used = 0

    def shared(self, prompt_ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt the cache holds, without the prompt's last token, which must run."""
        return min(common_prefix(self.ids, prompt_ids), self.kv_cache.length, len(prompt_ids) - 1)

    def begin(self, prompt_ids: Sequence[int], shared: int) -> None:
        """Replace the tokens by a prompt, of which the cache keeps the first `shared`."""
        self.kv_cache.truncate(shared)
        self.ids = list(prompt_ids)


class SequencePool:
    """At most `count` sequences, created when they are needed.

    Args:
        new_kv_cache: makes an empty KV cache.
    """

    def __init__(self, count: int, new_kv_cache: Callable[[], KVCache]) -> None:
        self._count = count
        self._new_kv_cache = new_kv_cache
        self._sequences: list[KeptSequence] = []
        self._clock = 0

    def shared(self, prompt_ids: Sequence[int]) -> int:
        """Return the most tokens of a prompt that one sequence holds."""
        return max((sequence.shared(prompt_ids) for sequence in self._sequences), default=0)

    def take(self, prompt_ids: Sequence[int], *, reuse: bool = True) -> KeptSequence:
        """Return a sequence for a prompt, marked busy; its cache holds the tokens that need not run.

        Raises:
            DoesNotFitError: no memory is left for another KV cache.
        """
        best = max(self._sequences, key=lambda s: (s.shared(prompt_ids), not s.busy), default=None)
        shared = best.shared(prompt_ids) if best is not None and reuse else 0
        if best is None or shared < WORTH_SHARING:
            return self._begin(self._spare(), prompt_ids, 0)
        # If the prompt shares less than half of a sequence, continuing it would lose most of it.
        extends = not best.busy and 2 * shared >= best.kv_cache.length
        if extends or (not best.busy and self._idle() == [best] and len(self._sequences) == self._count):
            return self._begin(best, prompt_ids, shared)
        spare = self._spare(besides=best)
        spare.kv_cache.truncate(0)
        spare.kv_cache.copy_prefix(best.kv_cache, shared)
        return self._begin(spare, prompt_ids, shared)

    @property
    def kept(self) -> int:
        """Sequences that hold something and are not busy."""
        return sum(1 for s in self._sequences if not s.busy and s.kv_cache.length)

    @property
    def busy_positions(self) -> int:
        """Positions of KV caches in which answers are running."""
        return sum(s.kv_cache.length for s in self._sequences if s.busy)

    def _begin(self, sequence: KeptSequence, prompt_ids: Sequence[int], shared: int) -> KeptSequence:
        self._clock += 1
        sequence.busy, sequence.used = True, self._clock
        sequence.begin(prompt_ids, shared)
        return sequence

    def _spare(self, besides: KeptSequence | None = None) -> KeptSequence:
        """Return a new sequence, or the least recently used one when all have been made."""
        if len(self._sequences) < self._count:
            self._sequences.append(KeptSequence(self._new_kv_cache()))
            return self._sequences[-1]
        return min((s for s in self._idle() if s is not besides), key=lambda s: s.used)

    def _idle(self) -> list[KeptSequence]:
        return [sequence for sequence in self._sequences if not sequence.busy]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common beginning of `a` and `b`."""
    for count, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return count
    return min(len(a), len(b))
