"""The slots of every layer and their experts: decisions only, no memory and no copies.

Contract: nothing is copied here and nothing waits. A slot is free, loading or ready; a ready one with readers is in
use. A slot that is loading or in use is never given to another expert. Each layer has a quota of slots. Only one thread
uses the cache. Slot numbers are stable: slot i of a layer is always the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mixq.errors import UsageError, printable
from mixq.experts.policies import Policy, PolicyOfLayer, Static, policies


class SlotState(Enum):
    """The state of a slot."""

    FREE = "free"
    LOADING = "loading"
    READY = "ready"


@dataclass(slots=True)
class Slot:
    """A slot; `readers` counts the launches that read it."""

    expert: int | None = None
    state: SlotState = SlotState.FREE
    readers: int = 0

    @property
    def busy(self) -> bool:
        """Whether the slot cannot be given to another expert."""
        return self.readers > 0 or self.state is SlotState.LOADING


@dataclass(slots=True)
class CacheCounters:
    """Counts of a layer's requests; `late`: misses that were loading already."""

    hits: int = 0
    misses: int = 0
    late: int = 0
    loads: int = 0
    evictions: int = 0


@dataclass(slots=True)
class _Layer:
    quota: int
    policy: Policy
    slots: dict[int, Slot]
    places: dict[int, int] = field(default_factory=dict)  # expert: slot
    counters: CacheCounters = field(default_factory=CacheCounters)
    leaving: set[int] = field(default_factory=set)  # slots to remove when they are free
    retired: list[int] = field(default_factory=list)  # removed slots, until `retired` returns them

    def free(self) -> list[int]:
        return [n for n, slot in self.slots.items() if slot.state is SlotState.FREE and n not in self.leaving]


class ExpertCache:
    """Slots of every layer.

    Args:
        quotas: slots of each layer, from 0 to the number of experts.
        experts: of a layer.
        policy: lru, lfu, static or random, or a function that creates a layer's policy.
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
        self._layers = [
            _Layer(quota, make(layer, quota), {number: Slot() for number in range(quota)})
            for layer, quota in enumerate(quotas)
        ]

    @property
    def quotas(self) -> tuple[int, ...]:
        """Slots of each layer; more may still be in use while a layer shrinks."""
        return tuple(layer.quota for layer in self._layers)

    @property
    def counters(self) -> list[CacheCounters]:
        """Counts of each layer."""
        return [layer.counters for layer in self._layers]

    def request(self, layer: int, experts: Sequence[int]) -> dict[int, int]:
        """Count the experts that a token needs of a layer, in this order, and return {expert: slot} of those that are
        ready."""
        found, ready = self._layers[layer], {}
        for expert in experts:
            slot = found.places.get(expert)
            found.policy.used(expert)
            if slot is not None and found.slots[slot].state is SlotState.READY:
                ready[expert] = slot
                found.counters.hits += 1
            else:
                found.counters.misses += 1
                found.counters.late += slot is not None
        return ready

    def state(self, layer: int, expert: int) -> tuple[int, SlotState] | None:
        """Return an expert's slot and its state; None if it has none; counts nothing."""
        found = self._layers[layer]
        slot = found.places.get(expert)
        return None if slot is None else (slot, found.slots[slot].state)

    def slots(self, layer: int) -> list[int]:
        """Return the numbers of a layer's slots."""
        return sorted(self._layers[layer].slots)

    def has_free_slot(self, layer: int) -> bool:
        """Return whether an expert could get a slot without an eviction."""
        return bool(self._layers[layer].free())

    def begin_load(self, layer: int, expert: int) -> int | None:
        """Give an expert a slot, marked as loading; evict the expert that was in it.

        Returns None if every slot is loading or in use, there is none, or the policy does not admit the expert.

        Raises:
            ValueError: it has a slot.
        """
        found = self._layers[layer]
        if expert in found.places:
            raise ValueError(f"expert {expert} has a slot already")
        if not found.policy.admits(expert):
            return None
        free = found.free()
        number = free[0] if free else _evict(found)
        if number is None:
            return None
        found.slots[number] = Slot(expert, SlotState.LOADING)
        found.places[expert] = number
        found.policy.loaded(expert)
        found.counters.loads += 1
        return number

    def finish_load(self, layer: int, slot: int) -> None:
        """Mark a loading slot as ready."""
        found = self._layers[layer]
        _loading(found, slot).state = SlotState.READY
        _retire_if_leaving(found, slot)

    def cancel_load(self, layer: int, slot: int) -> None:
        """Mark a loading slot as free, because nothing was copied."""
        found = self._layers[layer]
        _loading(found, slot)
        _empty(found, slot)
        _retire_if_leaving(found, slot)

    def acquire(self, layer: int, slot: int) -> None:
        """Increment the reader count of a ready slot; it is in use until `release`."""
        found = self._layers[layer].slots[slot]
        if found.state is not SlotState.READY:
            raise ValueError(f"slot {slot} is {found.state.value}, not ready")
        found.readers += 1

    def release(self, layer: int, slot: int) -> None:
        """Decrement the slot's reader count."""
        found = self._layers[layer]
        if not found.slots[slot].readers:
            raise ValueError(f"slot {slot} is not in use")
        found.slots[slot].readers -= 1
        _retire_if_leaving(found, slot)

    def resize(self, layer: int, slots: int) -> list[int]:
        """Change a layer's quota; return the slots that are removed at once.

        Slots that are loading or in use are removed later, and returned by `retired`. New slots are free.
        """
        if not 0 <= slots <= self.experts:
            raise ValueError(f"a layer has 0 to {self.experts} slots, not {slots}")
        found = self._layers[layer]
        found.quota = slots
        if isinstance(found.policy, Static):
            found.policy.keep = slots
        staying = [number for number in found.slots if number not in found.leaving]
        missing = max(0, slots - len(staying))
        back = sorted(found.leaving)[:missing]
        found.leaving.difference_update(back)
        unused = [number for number in range(self.experts) if number not in found.slots]
        for number in unused[: missing - len(back)]:
            found.slots[number] = Slot()
            if number in found.retired:  # its memory has not been freed yet, and is kept now
                found.retired.remove(number)
        # Free slots are removed first, then idle ones, then busy ones; of each, the highest numbers.
        order = sorted(staying, key=lambda n: (2 if (s := found.slots[n]).busy else s.state is SlotState.READY, -n))
        going = order[: max(0, len(staying) - slots)]
        found.leaving.update(going)
        return [number for number in going if _retire_if_leaving(found, number, named=True)]

    def retired(self) -> list[tuple[int, int]]:
        """Return (layer, slot) of slots removed since the last call that have not returned with a larger quota."""
        gone = [(layer, slot) for layer, found in enumerate(self._layers) for slot in found.retired]
        for found in self._layers:
            found.retired.clear()
        return gone

    def warm_up(self, layer: int) -> list[int]:
        """Return the experts with which to fill a layer's free slots before the first token."""
        order = range(self.experts) if self.popular is None else self.popular[layer]
        absent = [expert for expert in order if self.state(layer, expert) is None]
        return absent[: len(self._layers[layer].free())]


def _evict(layer: _Layer) -> int | None:
    """Empty a slot that is not in use, and return it."""
    candidates = [
        slot.expert
        for number, slot in layer.slots.items()
        if slot.expert is not None and not slot.busy and number not in layer.leaving
    ]
    if not candidates:
        return None
    victim = layer.policy.victim(candidates)
    if victim not in candidates:  # only a user's own policy
        raise UsageError(
            f"The cache policy {type(layer.policy).__name__}: victim returned {printable(repr(victim))}; it must "
            f"be one of {', '.join(map(str, candidates))}."
        )
    number = layer.places[victim]
    _empty(layer, number)
    layer.counters.evictions += 1
    return number


def _loading(layer: _Layer, number: int) -> Slot:
    slot = layer.slots[number]
    if slot.state is not SlotState.LOADING:
        raise ValueError(f"slot {number} is not loading")
    return slot


def _empty(layer: _Layer, number: int) -> None:
    expert = layer.slots[number].expert
    if expert is not None:
        del layer.places[expert]
        layer.policy.evicted(expert)
    layer.slots[number] = Slot()


def _retire_if_leaving(layer: _Layer, number: int, *, named: bool = False) -> bool:
    """Remove a slot unless it is busy; return whether it was removed.

    Args:
        named: the caller returns it, so that `retired` need not.
    """
    slot = layer.slots[number]
    if number not in layer.leaving or slot.busy:
        return False
    layer.counters.evictions += slot.expert is not None
    _empty(layer, number)
    layer.leaving.remove(number)
    del layer.slots[number]
    if not named:
        layer.retired.append(number)
    return True
