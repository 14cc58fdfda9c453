"""The accelerator's memory for experts: an allocation for each slot, and the tensors in it that kernels read.

Contract: slot i of a layer is the same memory from when it is made until it is freed; each slot is an allocation of its
own, so that freeing one frees memory. `views` is what kernels read: the same list object until a slot is made or freed.
What is in a slot, and when it may be read or written, is the cache's business.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Accelerator, OutOfMemory
from mixq.experts.cache import ExpertCache, SlotState
from mixq.experts.store import ExpertStore
from mixq.kernels.reference import Expert


class SlotMemory:
    """Slots of every layer, and staging buffers beside them.

    Args:
        cache: says which slots there are.
        slot_bytes: of each.
        staging: how many buffers.

    Attributes:
        staging: the buffers, uint8 [slot_bytes].
        moves: changes whenever memory is freed: what was captured with the old addresses is no longer valid.
    """

    def __init__(
        self, store: ExpertStore, accelerator: Accelerator, cache: ExpertCache, slot_bytes: int, staging: int
    ) -> None:
        self._store, self._accelerator, self._cache = store, accelerator, cache
        self._slot_bytes = slot_bytes
        self.staging = [accelerator.allocate(slot_bytes) for _ in range(staging)]
        self.moves = 0
        self._slots: list[dict[int, Tensor]] = [{} for _ in range(store.layers)]
        self._views: list[list[Expert] | None] = [None] * store.layers
        self._tables: list[Tensor | None] = [None] * store.layers

    def __len__(self) -> int:
        return sum(len(slots) for slots in self._slots)

    def make(self) -> int:
        """Allocate every slot of the cache that has no memory, the layers in turn.

        If memory runs out, the cache is shrunk; returned is how many slots could not be made.
        """
        missing = sorted(
            (slot, layer)
            for layer, slots in enumerate(self._slots)
            for slot in self._cache.slots(layer)
            if slot not in slots
        )
        for made, (slot, layer) in enumerate(missing):
            try:
                self._slots[layer][slot] = self._accelerator.allocate(self._slot_bytes)
            except OutOfMemory:
                for layer in {layer for _, layer in missing[made:]}:
                    for retired in self._cache.resize(layer, len(self._slots[layer])):
                        self.free(layer, retired)
                return len(missing) - made
            self._views[layer] = self._tables[layer] = None
        return 0

    def memory(self, layer: int, slot: int) -> Tensor:
        """Return a slot's memory, uint8."""
        return self._slots[layer][slot]

    def free(self, layer: int, slot: int) -> int:
        """Free a slot that the cache has retired, and return its bytes."""
        memory = self._slots[layer].pop(slot, None)
        self._views[layer] = self._tables[layer] = None
        self.moves += 1
        if memory is None:
            return 0
        self._accelerator.release(memory)
        return memory.nbytes

    def views(self, layer: int) -> list[Expert]:
        """Return the experts in a layer's slots, by slot number, then those in the staging buffers."""
        views = self._views[layer]
        if views is None:
            slots, unused = self._slots[layer], self.staging[0]
            memories = [slots.get(slot, unused) for slot in range(self._store.experts)] + self.staging
            views = self._views[layer] = [self._store.view(layer, memory) for memory in memories]
        return views

    def staging_index(self, buffer: int) -> int:
        """Return the index of a staging buffer in `views`."""
        return self._store.experts + buffer

    def table(self, layer: int) -> Tensor | None:
        """Return the slot of each expert, int64 [E] on the accelerator, if all are in slots; else None."""
        if self._tables[layer] is None and self._cache.quotas[layer] == self._store.experts:
            places = [self._cache.state(layer, expert) for expert in range(self._store.experts)]
            slots = [place[0] for place in places if place is not None and place[1] is SlotState.READY]
            if len(slots) == len(places):
                self._tables[layer] = self._accelerator.to_device(torch.tensor(slots))
        return self._tables[layer]
