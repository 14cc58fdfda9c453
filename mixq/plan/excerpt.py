"""Estimates the speed of a recording: simulates an excerpt and scales the result to the whole.

Contract: the excerpt is windows of `WINDOW` tokens spread evenly over the replies, timed by `mixq.plan.replay`. The
seconds beyond those of a model whose experts are all in GPU memory grow with the misses, so they are scaled by the
share of misses in the whole recording over that in the excerpt. No torch.

Axes: T tokens, H layers ahead, L layers, A active experts, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixq.errors import UsageError
from mixq.experts.cost import Hardware, ModelCost
from mixq.experts.policies import PolicyOfLayer
from mixq.plan.hit_curves import most_used
from mixq.plan.recording import NOTHING, Recording
from mixq.plan.replay import ReplayResult, Trace, belady, replay, replay_hits

WINDOW = 64
LEAD = 32
"""Tokens before each window that are played and not counted: the scheduler learns from them what admissions gain."""

BEFORE = 128
"""Tokens before those; the slots begin with the experts used most among them, about as in a long run."""

MOST_TOKENS = 400_000
"""Tokens of a recording that are played at most; more take more memory and hardly change a figure."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a recording is replayed on.

    Attributes:
        pass_seconds, layer_seconds: what a pass and each of its layers take besides what `hardware` says.
        driver: bytes that the GPU's driver takes.
    """

    hardware: Hardware
    pass_seconds: float = 0.0
    layer_seconds: float = 0.0
    driver: int = 0


@dataclass(frozen=True, slots=True)
class Played:
    """The part of a recording that is replayed.

    Attributes:
        choices: [T, L, A].
        predicted: [T, H, L, A].
        positions: of the context that a token sees, on average.
        recorded: tokens of replies in the recording.
        popular: see `most_used`.
    """

    choices: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    positions: int
    recorded: int
    popular: list[list[int]]

    @classmethod
    def of(cls, recording: Recording, name: str, cost: ModelCost, notes: list[str]) -> Played:
        """Return the replies of a recording, with its layers spread over those of the model; notes say what was cut.

        Raises:
            UsageError: the model has other experts than the recording.
        """
        facts = recording.facts
        if (facts.experts, facts.active) != (cost.experts, cost.active):
            raise UsageError(
                f"The recording has {facts.experts} experts a layer, {facts.active} of them used; {name} has "
                f"{cost.experts} and {cost.active}."
            )
        rows = np.flatnonzero(~recording.is_prompt)
        if not len(rows):
            rows = np.arange(len(recording))
            notes.append("The recording has no replies: its prompts are replayed token by token.")
        recorded = len(rows)
        if recorded > MOST_TOKENS:
            rows = rows[:MOST_TOKENS]
            notes.append(f"The first {MOST_TOKENS:,} of {recorded:,} tokens are replayed.")
        layers = np.arange(cost.layers) * facts.layers // cost.layers
        if facts.layers != cost.layers:
            notes.append(f"The {facts.layers} recorded layers stand for the {cost.layers} of {name}.")
        choices = recording.experts[rows][:, layers]
        seen = np.arange(len(recording)) - np.searchsorted(recording.prompt, recording.prompt)
        ordered = bool((np.diff(recording.prompt) >= 0).all())
        positions = int(seen[rows].mean()) if ordered else 0
        # The prediction for a layer that stands for several comes from the recorded layer before: still one made ahead.
        predicted = recording.predicted[rows][:, :, layers]
        return cls(choices, predicted, positions, recorded, most_used(choices, cost.experts))


@dataclass(frozen=True, slots=True)
class _Window:
    """A piece of the excerpt: `lead` tokens that only warm up cache and scheduler, then those counted.

    Attributes:
        popular: experts by how often they were used shortly before, which the slots begin with; None at the recording's
            beginning.
    """

    trace: Trace
    predicted: list[Trace]
    lead: int
    popular: list[list[int]] | None

    @classmethod
    def of(cls, played: Played, begin: int, end: int, experts: int) -> _Window:
        first = max(0, begin - LEAD)
        before = played.choices[max(0, first - BEFORE) : first]
        guesses = played.predicted[first:end]  # [T, H, L, A]
        predicted: list[Trace] = [
            [[[e for e in layer if e != NOTHING] for layer in token] for token in guesses[:, ahead].tolist()]
            for ahead in range(guesses.shape[1])
        ]
        popular = most_used(before, experts) if first else None
        return cls(played.choices[first:end].tolist(), predicted, begin - first, popular)


class Timed(NamedTuple):
    """Figures of one setting, see `mixq.plan.sweep.Combination`."""

    tokens_per_second: float
    share_of_limit: float
    on_gpu: float


class Excerpt:
    """Replays an excerpt on a virtual clock, each setting once.

    Attributes:
        tokens: that are counted.
    """

    def __init__(
        self,
        played: Played,
        cost: ModelCost,
        machine: Machine,
        tokens: int,
        curves: Mapping[str, NDArray[np.int64]],
    ) -> None:
        self._played, self._cost, self._hardware, self._curves = played, cost, machine.hardware, curves
        self._around = machine.pass_seconds + cost.layers * machine.layer_seconds
        T = len(played.choices)
        count = max(1, tokens // WINDOW)
        length = T if tokens >= T else min(tokens, WINDOW)
        begins = {(2 * i + 1) * (T - length) // (2 * count) for i in range(count)} if length < T else {0}
        self._windows = [_Window.of(played, begin, begin + length, cost.experts) for begin in sorted(begins)]
        self.tokens = sum(len(window.trace) - window.lead for window in self._windows)
        self._known: dict[tuple[str, tuple[int, ...], str], Timed] = {}
        full = self._replay(self._windows[0], "lru", [cost.experts] * cost.layers, "auto")
        self._all_there = full.seconds / full.tokens

    def time(self, policy: str, quotas: tuple[int, ...], miss: str) -> Timed:
        """Return the figures of the whole recording."""
        if len({*quotas, 0}) == 1 or len({*quotas, self._cost.experts}) == 1:
            policy = "lru"  # with no slots, or one for each expert, all policies are the same
        key = (policy, quotas, miss)
        if key not in self._known:
            results = [self._replay(window, policy, quotas, miss) for window in self._windows]
            seconds = sum(result.seconds for result in results) / self.tokens
            limit = sum(result.limit_seconds for result in results) / self.tokens
            hits = sum(result.hits for result in results) / sum(result.requests for result in results)
            more = self._more_misses(policy, quotas)
            whole = self._all_there + (seconds - self._all_there) * more + self._around
            on_gpu = min(max(1 - (1 - hits) * more, 0.0), 1.0)
            self._known[key] = Timed(1 / whole, limit / (seconds + self._around), on_gpu)
        return self._known[key]

    def _more_misses(self, policy: str, quotas: tuple[int, ...]) -> float:
        """Return the whole recording's share of misses over the excerpt's."""
        misses = 0
        for window in self._windows:
            for sign, trace in ((1, window.trace), (-1, window.trace[: window.lead])):
                how, popular = self._setting(policy, window)
                counts = replay_hits(trace, quotas, how, "fetch", experts=self._cost.experts, popular=popular)
                misses += sign * sum(count.misses for count in counts)
        asked = self._cost.layers * self._cost.active
        curve = self._curves[policy if policy in self._curves else "belady"]
        whole = asked - int(curve[np.arange(len(quotas)), quotas].sum()) / len(self._played.choices)
        return min(max(whole * self.tokens / misses, 0.5), 2.0) if misses > 0 else 1.0

    def _replay(self, window: _Window, policy: str, quotas: Sequence[int], miss: str) -> ReplayResult:
        how, popular = self._setting(policy, window)
        return replay(
            window.trace,
            self._hardware,
            self._cost,
            quotas,
            how,
            miss,
            context=self._played.positions,
            popular=popular,
            predicted=window.predicted,
            lead=window.lead,
        )

    def _setting(self, policy: str, window: _Window) -> tuple[str | PolicyOfLayer, list[list[int]] | None]:
        """Return the policy, and the experts that the slots begin with."""
        popular = self._played.popular if policy == "static" else window.popular
        return belady(window.trace) if policy == "belady" else policy, popular
