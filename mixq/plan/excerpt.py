"""Estimates the speed of a recording: simulates an excerpt and scales the result.

Contract: the excerpt consists of windows of `WINDOW` tokens spread evenly over the replies, simulated by
`mixq.plan.replay`. The time in addition to that of a model with all experts in GPU memory grows with the misses, so it
is scaled by the ratio of misses in the whole recording and in the excerpt. No torch.

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
"""Tokens before each window that are simulated but not counted: from them the scheduler learns what admissions gain."""

BEFORE = 128
"""Tokens before those; the slots start with the experts that they use most, about as in a long run."""

MOST_TOKENS = 400_000
"""Most tokens of a recording that are simulated; more need more memory and hardly change the result."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer and model for a replay."""

    hardware: Hardware
    # pass_seconds, layer_seconds: of a forward pass and of each layer, in addition to those in `hardware`
    pass_seconds: float = 0.0
    layer_seconds: float = 0.0
    driver: int = 0  # bytes that the GPU's driver uses


@dataclass(frozen=True, slots=True)
class Played:
    """The part of a recording that is replayed."""

    choices: NDArray[np.uint8]  # [T, L, A]
    predicted: NDArray[np.uint8]  # [T, H, L, A]
    positions: int  # mean number of positions that a token attends to
    recorded: int  # tokens of replies in the recording
    popular: list[list[int]]  # see `most_used`

    @classmethod
    def of(cls, recording: Recording, name: str, cost: ModelCost, notes: list[str]) -> Played:
        """Return the replies of a recording, its layers mapped to those of the model; notes tell what was omitted.

        Raises:
            UsageError: the model has other experts than the recording.
        """
        facts = recording.facts
        if (facts.experts, facts.active) != (cost.experts, cost.active):
            raise UsageError(
                f"The recording has {facts.experts} experts per layer and uses {facts.active} per token; {name} has "
                f"{cost.experts} and uses {cost.active}.",
                hint="Omit --model, or use one with the same numbers.",
            )
        rows = np.flatnonzero(~recording.is_prompt)
        if not len(rows):
            rows = np.arange(len(recording))
            notes.append("The recording has no replies, so its prompts are replayed token by token.")
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
    """A window of the excerpt: `lead` tokens that only warm up cache and scheduler, then counted tokens."""

    trace: Trace
    predicted: list[Trace]
    lead: int
    # the experts used most just before, with which the slots start; None at the start of the recording
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
    """Results of one setting; see `mixq.plan.sweep.Combination`."""

    tokens_per_second: float
    share_of_limit: float
    on_gpu: float


class Excerpt:
    """Replays an excerpt on a virtual clock, once per setting.

    Attributes:
        tokens: the number of counted tokens.
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
        """Return the results for the whole recording."""
        if len({*quotas, 0}) == 1 or len({*quotas, self._cost.experts}) == 1:
            policy = "lru"  # without slots, or with one for each expert, all policies are equal
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
        """Return the policy, and the experts with which the slots start."""
        popular = self._played.popular if policy == "static" else window.popular
        return belady(window.trace) if policy == "belady" else policy, popular
