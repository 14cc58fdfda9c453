"""What a recording would have hit, and how fast it would have run: every budget, policy and way to share the slots.

Contract: hits are those of the expert cache over the whole recording, every miss loaded (`mixq.plan.hit_curves`, which
is the cache's own counting), so they depend on the slots and the policy alone. Speed is that of the event simulation
(`mixq.plan.replay`: the scheduler's own plans, copies in the background, the miss mode) on an excerpt of the recording,
windows of `WINDOW` tokens spread evenly. What the time is above that of a model whose experts are all in GPU memory
grows with the misses, so it is carried over to the whole recording by their share there and in the excerpt. Only tokens
of replies count: prompts run many tokens at a time, and nobody waits for single experts. No torch.

Axes: T tokens, L layers, A active experts, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixq.config import format_size
from mixq.errors import DoesNotFitError, UsageError
from mixq.experts import quota
from mixq.experts.cost import Hardware, ModelCost
from mixq.experts.memory_plan import STAGING_SLOTS
from mixq.experts.policies import PolicyOfLayer
from mixq.plan.hit_curves import hit_curves, most_used
from mixq.plan.recording import NOTHING, Recording
from mixq.plan.replay import ReplayResult, Trace, belady, replay, replay_hits

BEST = "belady"
QUOTAS = ("even", "fitted")
WINDOW = 64
LEAD = 32
"""Tokens before each window that are played and not counted: the scheduler has to learn what admissions are worth."""

BEFORE = 128
"""Tokens before those, whose most used experts the slots begin with: about what a long run has there."""

MOST_TOKENS = 400_000
"""Of a recording that are played: more take more memory, and say nothing new."""

_SIMULATED = 6000
"""Tokens that the event simulation counts in all, about: some seconds."""

_EXCERPT = (128, 256)
"""Tokens of an excerpt, at least and at most."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's sizes.

    Attributes:
        name: for people.
        cost: bytes by place.
        workspace: bytes on the accelerator for activations.
    """

    name: str
    cost: ModelCost
    workspace: int = 0

    def fixed(self, context: int, driver: int) -> int:
        """Return the bytes of GPU memory that are taken before the first slot."""
        cost = self.cost
        trunk = cost.layers * cost.trunk_bytes + cost.head_bytes
        kv_cache = context * cost.kv_bytes * cost.layers
        return driver + kv_cache + trunk + self.workspace + STAGING_SLOTS * cost.expert_bytes

    def slots(self, vram: int, context: int, driver: int) -> int:
        """Return the slots that a budget has room for, negative where it has none even for the rest."""
        cost = self.cost
        return min((vram - self.fixed(context, driver)) // cost.expert_bytes, cost.layers * cost.experts)


@dataclass(frozen=True, slots=True)
class Machine:
    """What it would have run on.

    Attributes:
        pass_seconds, layer_seconds: what a pass and each of its layers take besides what `hardware` says.
        driver: bytes that the GPU's driver takes.
    """

    hardware: Hardware
    pass_seconds: float = 0.0
    layer_seconds: float = 0.0
    driver: int = 0

    def around(self, layers: int) -> float:
        """Return the seconds of a token that no weight and no copy explains."""
        return self.pass_seconds + layers * self.layer_seconds


@dataclass(frozen=True, slots=True)
class Combination:
    """One budget, policy, way to share the slots, and miss mode.

    Attributes:
        vram: bytes of GPU memory.
        slots: of all layers.
        quotas: even or fitted; `slots_by_layer` is what that comes to.
        hit_rate: share of the experts that were in a slot when they were asked for, every miss being loaded.
        to_best: what could be hit more with the same slots, a share too: by Belady's policy, which knows what will be
            asked for and lets everybody in, or by the most used experts, which stay; whichever hits more.
        hits_by_layer: shares.
        tokens_per_second, share_of_limit: see `mixq.plan.replay`.
        on_gpu: share of the experts that the accelerator found in its slots in the miss mode: `auto` and `cpu` do not
            load every miss.
    """

    vram: int
    slots: int
    policy: str
    quotas: str
    miss: str
    slots_by_layer: tuple[int, ...]
    hit_rate: float
    to_best: float
    hits_by_layer: tuple[float, ...]
    tokens_per_second: float
    share_of_limit: float
    on_gpu: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """All combinations, and what they were made from.

    Attributes:
        tokens: of replies that were played; `recorded` is how many there were.
        excerpt: tokens of the simulation.
        curves: of each policy the share of hits by layer with 0, 1, ... E slots.
        notes: what the user should know.
    """

    model: str
    layers: int
    experts: int
    active: int
    tokens: int
    recorded: int
    excerpt: int
    context: int
    positions: int
    hardware: Hardware
    curves: Mapping[str, NDArray[np.float64]]
    popular: tuple[tuple[int, ...], ...]
    combinations: tuple[Combination, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Combination:
        """The fastest that a model can be run with: nobody has Belady's knowledge."""
        real = [c for c in self.combinations if c.policy != BEST] or list(self.combinations)
        return max(real, key=lambda c: (c.tokens_per_second, c.hit_rate, -c.vram))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "model": self.model,
            "layers": self.layers,
            "experts": self.experts,
            "active": self.active,
            "tokens": self.tokens,
            "recorded_tokens": self.recorded,
            "excerpt_tokens": self.excerpt,
            "context": self.context,
            "positions": self.positions,
            "hardware": asdict(self.hardware),
            "hit_rate_by_slots": {policy: curve.round(6).tolist() for policy, curve in self.curves.items()},
            "combinations": [asdict(combination) for combination in self.combinations],
            "best": asdict(self.best),
            "notes": list(self.notes),
        }


def default_budgets(weights: Weights, context: int, driver: int, points: int) -> list[int]:
    """Return budgets from no slot at all to one for every expert."""
    cost = weights.cost
    fixed, slots = weights.fixed(context, driver), cost.layers * cost.experts
    return [fixed + round(slots * i / (points - 1)) * cost.expert_bytes for i in range(points)]


def sweep(
    recording: Recording,
    weights: Weights,
    machine: Machine,
    budgets: Sequence[int],
    *,
    policies: Sequence[str] = ("lru", "lfu", "static", BEST),
    quotas: Sequence[str] = QUOTAS,
    misses: Sequence[str] = ("auto",),
    context: int = 8192,
    excerpt: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:
    """Return every combination.

    Args:
        weights: whose bytes; where the model has another number of layers, the recorded ones stand for them.
        budgets: bytes of GPU memory.
        context: positions of the KV cache.
        excerpt: tokens of the simulation; None chooses.
        progress: called with how many of how many simulations are done.

    Raises:
        UsageError: a model with other experts than the recording's.
        DoesNotFitError: no budget has room for what every token uses.
    """
    notes: list[str] = []
    played = _Played.of(recording, weights, notes)
    E, T = weights.cost.experts, len(played.choices)
    slots = _slots(weights, budgets, context, machine.driver, notes)
    curves = {name: hit_curves(played.choices, E, name) for name in dict.fromkeys((*policies, BEST, "static"))}
    most_hits: dict[int, int] = {}
    for name in (BEST, "static"):
        for total, by_layer in _fitted(curves[name], slots.values()):
            most_hits[total] = max(most_hits.get(total, 0), _hits(curves[name], by_layer))
    asked = [(vram, policy, kind, miss) for vram in slots for policy in policies for kind in quotas for miss in misses]
    shares = {(policy, "fitted"): dict(_fitted(curves[policy], slots.values())) for policy in policies}
    shares |= {
        (policy, "even"): {total: quota.even(total, weights.cost.layers, E) for total in slots.values()}
        for policy in policies
    }
    wanted = {(policy, tuple(shares[policy, kind][slots[vram]]), miss) for vram, policy, kind, miss in asked}
    length = excerpt or min(max(_SIMULATED // max(len(wanted), 1), _EXCERPT[0]), _EXCERPT[1])
    timer = _Timer(played, weights.cost, machine, min(length, T), curves)
    combinations = []
    for done, (vram, policy, kind, miss) in enumerate(asked, 1):
        given = tuple(shares[policy, kind][slots[vram]])
        timed = timer.time(policy, given, miss)
        hits = curves[policy][np.arange(len(given)), given] / (T * weights.cost.active)
        hit_rate = float(hits.mean())
        best = most_hits[slots[vram]] / (T * weights.cost.active * weights.cost.layers)
        combinations.append(
            Combination(
                vram,
                slots[vram],
                policy,
                kind,
                miss,
                given,
                hit_rate,
                best - hit_rate,
                tuple(hits.round(6).tolist()),
                timed.tokens_per_second,
                timed.share_of_limit,
                timed.on_gpu,
            )
        )
        progress(done, len(asked))
    return Sweep(
        weights.name,
        weights.cost.layers,
        E,
        weights.cost.active,
        T,
        played.recorded,
        timer.tokens,
        context,
        played.positions,
        machine.hardware,
        {name: curve / (T * weights.cost.active) for name, curve in curves.items()},
        tuple(tuple(order) for order in played.popular),
        tuple(combinations),
        tuple(notes),
    )


def _fitted(curves: NDArray[np.int64], totals: Iterable[int]) -> list[tuple[int, list[int]]]:
    distinct = sorted(set(totals))
    return list(zip(distinct, quota.fits(curves.tolist(), distinct), strict=True))


def _hits(curves: NDArray[np.int64], quotas: Sequence[int]) -> int:
    return int(curves[np.arange(len(quotas)), quotas].sum())


def _slots(weights: Weights, budgets: Sequence[int], context: int, driver: int, notes: list[str]) -> dict[int, int]:
    """Return the slots of each budget that has room for what every token uses."""
    slots = {vram: weights.slots(vram, context, driver) for vram in sorted(set(budgets))}
    fitting = {vram: count for vram, count in slots.items() if count >= 0}
    least = weights.fixed(context, driver)
    if not fitting:
        raise DoesNotFitError(
            f"{weights.name} needs {format_size(least)} of GPU memory before the first expert, with a context of "
            f"{context}; the largest budget is {format_size(max(slots))}.",
            hint="Give a larger --vram, or a smaller --context.",
        )
    for vram in slots.keys() - fitting.keys():
        notes.append(f"{format_size(vram)} are left out: what every token uses takes {format_size(least)}.")
    return fitting


@dataclass(frozen=True, slots=True)
class _Played:
    """The part of a recording that is played.

    Attributes:
        choices: [T, L, A].
        predicted: [T, H, L, A].
        positions: of the context that a token sees, on average.
        recorded: tokens of replies that there were.
        popular: see `most_used`.
    """

    choices: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    positions: int
    recorded: int
    popular: list[list[int]]

    @classmethod
    def of(cls, recording: Recording, weights: Weights, notes: list[str]) -> _Played:
        facts, cost = recording.facts, weights.cost
        if (facts.experts, facts.active) != (cost.experts, cost.active):
            raise UsageError(
                f"The recording is of {facts.experts} experts a layer, {facts.active} of them used; {weights.name} has "
                f"{cost.experts} and {cost.active}."
            )
        rows = np.flatnonzero(~recording.is_prompt)
        if not len(rows):
            rows = np.arange(len(recording))
            notes.append("The recording has no replies: its prompts are played as if they were.")
        recorded = len(rows)
        if recorded > MOST_TOKENS:
            rows = rows[:MOST_TOKENS]
            notes.append(f"The first {MOST_TOKENS:,} of {recorded:,} tokens are played.")
        layers = np.arange(cost.layers) * facts.layers // cost.layers
        if facts.layers != cost.layers:
            notes.append(f"The {facts.layers} layers recorded stand for the {cost.layers} of {weights.name}.")
        choices = recording.experts[rows][:, layers]
        seen = np.arange(len(recording)) - np.searchsorted(recording.prompt, recording.prompt)
        ordered = bool((np.diff(recording.prompt) >= 0).all())
        positions = int(seen[rows].mean()) if ordered else 0
        # A guess for a layer that stands for several comes from the recorded layer before: it is still a guess ahead.
        predicted = recording.predicted[rows][:, :, layers]
        return cls(choices, predicted, positions, recorded, most_used(choices, cost.experts))


@dataclass(frozen=True, slots=True)
class _Timed:
    tokens_per_second: float
    share_of_limit: float
    on_gpu: float


@dataclass(frozen=True, slots=True)
class _Window:
    """A piece of the excerpt: `lead` tokens that only bring cache and scheduler into their stride, then those counted.

    Attributes:
        popular: what the slots begin with: experts by how often they were used shortly before; None where the recording
            begins.
    """

    trace: Trace
    predicted: list[Trace]
    lead: int
    popular: list[list[int]] | None

    @classmethod
    def of(cls, played: _Played, begin: int, end: int, experts: int) -> _Window:
        first = max(0, begin - LEAD)
        before = played.choices[max(0, first - BEFORE) : first]
        guesses = played.predicted[first:end]  # [T, H, L, A]
        predicted: list[Trace] = [
            [[[e for e in layer if e != NOTHING] for layer in token] for token in guesses[:, ahead].tolist()]
            for ahead in range(guesses.shape[1])
        ]
        popular = most_used(before, experts) if first else None
        return cls(played.choices[first:end].tolist(), predicted, begin - first, popular)


class _Timer:
    """Plays an excerpt on a virtual clock, each setting once."""

    def __init__(
        self,
        played: _Played,
        cost: ModelCost,
        machine: Machine,
        tokens: int,
        curves: Mapping[str, NDArray[np.int64]],
    ) -> None:
        self._played, self._cost, self._machine, self._curves = played, cost, machine, curves
        T = len(played.choices)
        count = max(1, tokens // WINDOW)
        length = T if tokens >= T else min(tokens, WINDOW)
        begins = {(2 * i + 1) * (T - length) // (2 * count) for i in range(count)} if length < T else {0}
        self._windows = [_Window.of(played, begin, begin + length, cost.experts) for begin in sorted(begins)]
        self.tokens = sum(len(window.trace) - window.lead for window in self._windows)
        self._known: dict[tuple[str, tuple[int, ...], str], _Timed] = {}
        full = self._replay(self._windows[0], "lru", [cost.experts] * cost.layers, "auto")
        self._all_there = full.seconds / full.tokens

    def time(self, policy: str, quotas: tuple[int, ...], miss: str) -> _Timed:
        """Return what the whole recording would take."""
        if len({*quotas, 0}) == 1 or len({*quotas, self._cost.experts}) == 1:
            policy = "lru"  # nothing ever comes or goes
        key = (policy, quotas, miss)
        if key not in self._known:
            results = [self._replay(window, policy, quotas, miss) for window in self._windows]
            seconds = sum(result.seconds for result in results) / self.tokens
            limit = sum(result.limit_seconds for result in results) / self.tokens
            hits = sum(result.hits for result in results) / sum(result.requests for result in results)
            around = self._machine.around(self._cost.layers)
            more = self._more_misses(policy, quotas)
            whole = self._all_there + (seconds - self._all_there) * more + around
            on_gpu = min(max(1 - (1 - hits) * more, 0.0), 1.0)
            self._known[key] = _Timed(1 / whole, limit / (seconds + around), on_gpu)
        return self._known[key]

    def _more_misses(self, policy: str, quotas: tuple[int, ...]) -> float:
        """Return how many times the excerpt's share of misses the whole recording has."""
        misses = 0
        for window in self._windows:
            for sign, trace in ((1, window.trace), (-1, window.trace[: window.lead])):
                counts = replay_hits(
                    trace,
                    quotas,
                    self._policy(policy, window),
                    "fetch",
                    experts=self._cost.experts,
                    popular=self._popular(policy, window),
                )
                misses += sign * sum(count.misses for count in counts)
        asked = self._cost.layers * self._cost.active
        name = policy if policy in self._curves else BEST
        whole = asked - _hits(self._curves[name], quotas) / len(self._played.choices)
        return min(max(whole * self.tokens / misses, 0.5), 2.0) if misses > 0 else 1.0

    def _replay(self, window: _Window, policy: str, quotas: Sequence[int], miss: str) -> ReplayResult:
        return replay(
            window.trace,
            self._machine.hardware,
            self._cost,
            quotas,
            self._policy(policy, window),
            miss,
            context=self._played.positions,
            popular=self._popular(policy, window),
            predicted=window.predicted,
            lead=window.lead,
        )

    @staticmethod
    def _policy(name: str, window: _Window) -> str | PolicyOfLayer:
        return belady(window.trace) if name == BEST else name

    def _popular(self, policy: str, window: _Window) -> list[list[int]] | None:
        return self._played.popular if policy == "static" else window.popular
