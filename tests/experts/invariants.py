"""What is true of a cache of experts after every operation."""

from __future__ import annotations

from mixq.experts.cache import ExpertCache, SlotState


def check_cache(cache: ExpertCache) -> None:
    """Assert every invariant of a cache."""
    for layer in cache._layers:
        held = {number: slot.expert for number, slot in layer.slots.items() if slot.expert is not None}
        assert len(set(held.values())) == len(held), "an expert has two slots"
        assert {expert: number for number, expert in held.items()} == layer.places
        assert len(layer.slots) - len(layer.leaving) == layer.quota
        assert layer.leaving <= set(layer.slots)
        assert all(0 <= number < cache.experts for number in layer.slots)
        for slot in layer.slots.values():
            assert (slot.state is SlotState.FREE) == (slot.expert is None)
            assert slot.readers == 0 or slot.state is SlotState.READY
            assert slot.readers >= 0
