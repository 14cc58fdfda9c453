"""Hits and speed of a recording for every combination of budget, policy and slot quota.

Contract: hits are those of the expert cache over the whole recording, every miss loaded (`mixq.plan.hit_curves`), so
they depend only on slots and policy. Speed is simulated on an excerpt (`mixq.plan.excerpt`). Only tokens of
replies count: prompts run many tokens at a time, and no single expert delays them. No torch.

Axes: T tokens, L layers, A active experts, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixq.config import format_size
from mixq.errors import DoesNotFitError
from mixq.experts import quota
from mixq.experts.cost import Hardware, ModelCost
from mixq.experts.memory_plan import STAGING_SLOTS
from mixq.plan.excerpt import Excerpt, Machine, Played
from mixq.plan.hit_curves import hit_curves
from mixq.plan.recording import Recording

BEST = "belady"
QUOTAS = ("even", "fitted")

_SIMULATED = 6000
"""Approximate number of tokens in all simulations: some seconds."""

_EXCERPT = (128, 256)
"""Least and most tokens of an excerpt."""


@dataclass(frozen=True, slots=True)
class ReplayModel:
    """A model's sizes."""

    name: str  # as text
    cost: ModelCost  # bytes by place
    workspace: int = 0  # bytes on the accelerator for activations

    def fixed(self, context: int, driver: int) -> int:
        """Return the bytes of GPU memory used without any slot."""
        cost = self.cost
        trunk = cost.layers * cost.trunk_bytes + cost.head_bytes
        kv_cache = context * cost.kv_bytes * cost.layers
        return driver + kv_cache + trunk + self.workspace + STAGING_SLOTS * cost.expert_bytes

    def slots(self, vram: int, context: int, driver: int) -> int:
        """Return the slots that fit into a budget; negative if it is too small even without slots."""
        cost = self.cost
        return min((vram - self.fixed(context, driver)) // cost.expert_bytes, cost.layers * cost.experts)


@dataclass(frozen=True, slots=True)
class Combination:
    """A budget, policy, slot quota and miss mode."""

    vram: int  # bytes of GPU memory
    slots: int  # of all layers
    policy: str
    quotas: str  # even or fitted; `slots_by_layer` is the result
    miss: str
    slots_by_layer: tuple[int, ...]
    hit_rate: float  # share of expert lookups that hit a slot, every miss being loaded
    # how much higher it could be with the same slots: with Belady's policy, which knows all later requests, or with the
    # most used experts kept; the better of the two
    to_best: float
    hits_by_layer: tuple[float, ...]  # shares
    # tokens_per_second, share_of_limit: see `mixq.plan.replay`
    tokens_per_second: float
    share_of_limit: float
    on_gpu: float  # share of expert lookups that hit a slot in the miss mode; `auto` and `cpu` do not load every miss


@dataclass(frozen=True, slots=True)
class Sweep:
    """All combinations, and the inputs."""

    model: str
    layers: int
    experts: int
    active: int
    tokens: int  # replayed tokens of replies; `recorded`: all of them
    recorded: int
    excerpt: int  # tokens of the simulation
    context: int
    positions: int
    hardware: Hardware
    curves: Mapping[str, NDArray[np.float64]]  # for each policy, the share of hits by layer with 0, 1, ... E slots.
    popular: tuple[tuple[int, ...], ...]
    combinations: tuple[Combination, ...]
    notes: tuple[str, ...]  # for the user

    @property
    def best(self) -> Combination:
        """The fastest combination that a model can run with: not with Belady's policy, if there is another."""
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


def default_budgets(model: ReplayModel, context: int, driver: int, points: int) -> list[int]:
    """Return budgets from no slot to one per expert."""
    cost = model.cost
    fixed, slots = model.fixed(context, driver), cost.layers * cost.experts
    return [fixed + round(slots * i / (points - 1)) * cost.expert_bytes for i in range(points)]


def sweep(
    recording: Recording,
    model: ReplayModel,
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
        model: its sizes; if it has another number of layers, the recorded ones are mapped to them.
        budgets: bytes of GPU memory.
        context: positions of the KV cache.
        excerpt: tokens of the simulation; None chooses.
        progress: called with the numbers of simulations done and in total.

    Raises:
        UsageError: the model has other experts than the recording.
        DoesNotFitError: every budget is too small for the weights that every token uses.
    """
    notes: list[str] = []
    cost = model.cost
    played = Played.of(recording, model.name, cost, notes)
    slots = _slots(model, budgets, context, machine.driver, notes)
    curves = {
        name: hit_curves(played.choices, cost.experts, name) for name in dict.fromkeys((*policies, BEST, "static"))
    }
    totals = sorted(set(slots.values()))
    fitted = {
        name: dict(zip(totals, quota.fits(curve.tolist(), totals), strict=True)) for name, curve in curves.items()
    }

    def hits_by_layer(policy: str, given: Sequence[int]) -> NDArray[np.int64]:
        return curves[policy][np.arange(cost.layers), given]

    def share_out(policy: str, kind: str, total: int) -> tuple[int, ...]:
        return tuple(fitted[policy][total] if kind == "fitted" else quota.even(total, cost.layers, cost.experts))

    asked = [
        (vram, policy, kind, share_out(policy, kind, total), miss)
        for vram, total in slots.items()
        for policy in policies
        for kind in quotas
        for miss in misses
    ]
    simulations = len({(policy, given, miss) for _, policy, _, given, miss in asked})
    length = excerpt or min(max(_SIMULATED // max(simulations, 1), _EXCERPT[0]), _EXCERPT[1])
    T = len(played.choices)
    simulated = Excerpt(played, cost, machine, min(length, T), curves)
    uses = T * cost.active  # of a layer
    combinations = []
    for done, (vram, policy, kind, given, miss) in enumerate(asked, 1):
        total = slots[vram]
        hits = hits_by_layer(policy, given) / uses
        most = max(int(hits_by_layer(name, fitted[name][total]).sum()) for name in (BEST, "static"))
        combinations.append(
            Combination(
                vram=vram,
                slots=total,
                policy=policy,
                quotas=kind,
                miss=miss,
                slots_by_layer=given,
                hit_rate=float(hits.mean()),
                to_best=most / (uses * cost.layers) - float(hits.mean()),
                hits_by_layer=tuple(hits.round(6).tolist()),
                **simulated.time(policy, given, miss)._asdict(),
            )
        )
        progress(done, len(asked))
    return Sweep(
        model=model.name,
        layers=cost.layers,
        experts=cost.experts,
        active=cost.active,
        tokens=T,
        recorded=played.recorded,
        excerpt=simulated.tokens,
        context=context,
        positions=played.positions,
        hardware=machine.hardware,
        curves={name: curve / uses for name, curve in curves.items()},
        popular=tuple(tuple(order) for order in played.popular),
        combinations=tuple(combinations),
        notes=tuple(notes),
    )


def _slots(model: ReplayModel, budgets: Sequence[int], context: int, driver: int, notes: list[str]) -> dict[int, int]:
    """Return the slots of each budget that is large enough for the weights that every token uses."""
    slots = {vram: model.slots(vram, context, driver) for vram in sorted(set(budgets))}
    fitting = {vram: count for vram, count in slots.items() if count >= 0}
    least = model.fixed(context, driver)
    if not fitting:
        raise DoesNotFitError(
            f"{model.name} needs {format_size(least)} of GPU memory before the first expert, with a context of "
            f"{context}; the largest size is {format_size(max(slots))}.",
            hint="Use a larger --vram, or a smaller --context.",
        )
    for vram in slots.keys() - fitting.keys():
        notes.append(
            f"{format_size(vram)} are omitted, because the weights that every token uses need {format_size(least)}."
        )
    return fitting
