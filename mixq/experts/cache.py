"""Slots of every layer, and which expert is in each: policy without effects.

Contract: nothing is copied here and nothing waits. A slot is free, loading or ready; a ready one with users is in use.
A slot that is loading or in use is never given to another expert: the cache would rather have none to give. Quotas are
by layer. One thread calls it. Numbers of slots are stable: slot i of a layer is always the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mixq.experts.policies import Policy, PolicyOfLayer, Static, policies


class SlotState(Enum):
    """What a slot is doing."""

    FREE = "free"
    LOADING = "loading"
    READY = "ready"


@dataclass(slots=True)
class Slot:
    """One place for an expert; `users` counts those who read it."""

    expert: int | None = None
    state: SlotState = SlotState.FREE
    users: int = 0


@dataclass(slots=True)
class CacheCounters:
    """What was asked of a layer, and what it cost.

    `late` are those of the misses that were on their way already.
    """

    hits: int = 0
    misses: int = 0
    late: int = 0
    loads: int = 0
    evictions: int = 0


class ExpertCache:
    """Slots of every layer.

    Args:
        quotas: slots of each layer, from 0 to the number of experts.
        experts: of a layer.
        policy: lru, lfu, static or random, or what makes a policy for a layer.
        seed, popular: see `mixq.experts.policies.policies`.
    """

    def __init__(
        self,
        quotas: Sequence[int],
        experts: int,
        policy: str | PolicyOfLayer = "lru",
        *,
        seed: int = 0,
        popular: Sequence[Sequence[int]] | None = None,
    ) -> None:
        make = policies(policy, experts, seed=seed, popular=popular) if isinstance(policy, str) else policy
        self.experts = experts
        self.popular = popular
        self._layers = [_Layer(quota, make(layer, quota)) for layer, quota in enumerate(quotas)]

    @property
    def quotas(self) -> tuple[int, ...]:
        """Slots of each layer; more may still be in use while a layer shrinks."""
        return tuple(layer.quota for layer in self._layers)

    @property
    def counters(self) -> list[CacheCounters]:
        """Counts of each layer."""
        return [layer.counters for layer in self._layers]

    def request(self, layer: int, experts: Sequence[int]) -> dict[int, int]:
        """Count what a pass needs of a layer, in this order, and return {expert: slot} of what is ready."""
        return self._layers[layer].request(experts)

    def state(self, layer: int, expert: int) -> tuple[int, SlotState] | None:
        """Return an expert's slot and what that is doing, None where it has none; counts nothing."""
        found = self._layers[layer]
        slot = found.places.get(expert)
        return None if slot is None else (slot, found.slots[slot].state)

    def slots(self, layer: int) -> list[int]:
        """Return the numbers of a layer's slots."""
        return sorted(self._layers[layer].slots)

    def has_free_slot(self, layer: int) -> bool:
        """Return whether an expert could come in without another's leaving."""
        return self._layers[layer].free() is not None

    def begin_load(self, layer: int, expert: int) -> int | None:
        """Give an expert a slot, which is loading from now on; what was in it is gone.

        None: every slot is loading or in use, there is none, or the policy does not want the expert.

        Raises:
            ValueError: it has a slot.
        """
        return self._layers[layer].begin_load(expert)

    def finish_load(self, layer: int, slot: int) -> None:
        """A loading slot is ready."""
        self._layers[layer].finish(slot, SlotState.READY)

    def cancel_load(self, layer: int, slot: int) -> None:
        """A loading slot is free: nothing was copied."""
        self._layers[layer].finish(slot, SlotState.FREE)

    def acquire(self, layer: int, slot: int) -> None:
        """A ready slot is in use until `release`."""
        self._layers[layer].acquire(slot)

    def release(self, layer: int, slot: int) -> None:
        """One user less."""
        self._layers[layer].release(slot)

    def resize(self, layer: int, slots: int) -> list[int]:
        """Change a layer's quota; return the slots that are gone at once.

        Slots that are loading or in use go when that ends, and `retired` names them. New slots are free.
        """
        if not 0 <= slots <= self.experts:
            raise ValueError(f"a layer has 0 to {self.experts} slots, not {slots}")
        return self._layers[layer].resize(slots)

    def retired(self) -> list[tuple[int, int]]:
        """Return (layer, slot) of what has gone late since the last call and has not come back with a larger quota."""
        return [(number, slot) for number, layer in enumerate(self._layers) for slot in layer.take_retired()]

    def warm_up(self, layer: int) -> list[int]:
        """Return the experts to fill a layer's free slots with before anything was asked for."""
        order = range(self.experts) if self.popular is None else self.popular[layer]
        absent = [expert for expert in order if self.state(layer, expert) is None]
        return absent[: self._layers[layer].free_count()]

    def check(self) -> None:
        """Assert every invariant."""
        for layer in self._layers:
            layer.check(self.experts)


class _Layer:
    def __init__(self, quota: int, policy: Policy) -> None:
        self.quota = quota
        self.policy = policy
        self.slots = {number: Slot() for number in range(quota)}
        self.places: dict[int, int] = {}  # expert: slot
        self.counters = CacheCounters()
        self._leaving: set[int] = set()
        self._retired: list[int] = []

    def request(self, experts: Sequence[int]) -> dict[int, int]:
        ready = {}
        for expert in experts:
            slot = self.places.get(expert)
            self.policy.used(expert)
            if slot is not None and self.slots[slot].state is SlotState.READY:
                ready[expert] = slot
                self.counters.hits += 1
            else:
                self.counters.misses += 1
                self.counters.late += slot is not None
        return ready

    def free(self) -> int | None:
        for number, slot in self.slots.items():
            if slot.state is SlotState.FREE and number not in self._leaving:
                return number
        return None

    def free_count(self) -> int:
        return sum(slot.state is SlotState.FREE and number not in self._leaving for number, slot in self.slots.items())

    def begin_load(self, expert: int) -> int | None:
        if expert in self.places:
            raise ValueError(f"expert {expert} has a slot already")
        if not self.policy.admits(expert):
            return None
        number = self.free()
        if number is None:
            number = self._evict()
        if number is None:
            return None
        self.slots[number] = Slot(expert, SlotState.LOADING)
        self.places[expert] = number
        self.policy.loaded(expert)
        self.counters.loads += 1
        return number

    def _evict(self) -> int | None:
        """Free a slot that nobody reads."""
        candidates = [
            slot.expert
            for number, slot in self.slots.items()
            if slot.state is SlotState.READY and not slot.users and number not in self._leaving
        ]
        if not candidates:
            return None
        victim = self.policy.victim([expert for expert in candidates if expert is not None])
        return self._empty(self.places[victim])

    def _empty(self, number: int) -> int:
        slot = self.slots[number]
        if slot.expert is not None:
            del self.places[slot.expert]
            self.policy.evicted(slot.expert)
            self.counters.evictions += 1
        self.slots[number] = Slot()
        return number

    def finish(self, number: int, state: SlotState) -> None:
        slot = self.slots[number]
        if slot.state is not SlotState.LOADING or slot.expert is None:
            raise ValueError(f"slot {number} is not loading")
        if state is SlotState.FREE:
            del self.places[slot.expert]
            self.policy.evicted(slot.expert)
            self.slots[number] = Slot()
        else:
            slot.state = state
        self._leave(number)

    def acquire(self, number: int) -> None:
        slot = self.slots[number]
        if slot.state is not SlotState.READY:
            raise ValueError(f"slot {number} is {slot.state.value}, not ready")
        slot.users += 1

    def release(self, number: int) -> None:
        slot = self.slots[number]
        if not slot.users:
            raise ValueError(f"slot {number} is not in use")
        slot.users -= 1
        self._leave(number)

    def resize(self, quota: int) -> list[int]:
        self.quota = quota
        if isinstance(self.policy, Static):
            self.policy.keep = quota
        staying = [number for number in self.slots if number not in self._leaving]
        missing = quota - len(staying)
        for number in sorted(self._leaving)[: max(0, missing)]:
            self._leaving.remove(number)
            missing -= 1
        unused = (number for number in range(len(self.slots) + max(0, missing)) if number not in self.slots)
        for _ in range(missing):
            number = next(unused)
            self.slots[number] = Slot()
            if number in self._retired:  # nobody has freed it yet, and now nobody may
                self._retired.remove(number)
        going = sorted(staying, key=self._worth)[: max(0, len(staying) - quota)]
        self._leaving.update(going)
        before = len(self._retired)
        for number in going:
            self._leave(number)
        gone = self._retired[before:]
        del self._retired[before:]
        return gone

    def _worth(self, number: int) -> tuple[int, int]:
        """Order in which slots go: free ones, idle ones, then those that are busy; the highest numbers first."""
        slot = self.slots[number]
        busy = 2 if slot.users or slot.state is SlotState.LOADING else int(slot.state is SlotState.READY)
        return busy, -number

    def _leave(self, number: int) -> None:
        """Retire a slot that is to go, if nobody loads or reads it."""
        slot = self.slots[number]
        if number in self._leaving and slot.state is not SlotState.LOADING and not slot.users:
            self._empty(number)
            self._leaving.remove(number)
            del self.slots[number]
            self._retired.append(number)

    def take_retired(self) -> list[int]:
        retired, self._retired = self._retired, []
        return retired

    def check(self, experts: int) -> None:
        held = {number: slot.expert for number, slot in self.slots.items() if slot.expert is not None}
        assert len(set(held.values())) == len(held), "an expert has two slots"
        assert {expert: number for number, expert in held.items()} == self.places
        assert len(self.slots) - len(self._leaving) == self.quota
        assert self._leaving <= set(self.slots)
        assert all(0 <= number < experts for number in self.slots) or not self.slots
        for slot in self.slots.values():
            assert (slot.state is SlotState.FREE) == (slot.expert is None)
            assert slot.users == 0 or slot.state is SlotState.READY
            assert slot.users >= 0
