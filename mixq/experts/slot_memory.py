"""The accelerator's memory for experts: a piece for each slot, and how kernels see them.

Contract: slot i of a layer is the same memory from when it is made until it is freed; each slot is an allocation of its
own, so that giving one back gives memory back. `views` is what kernels read: the same list object until a slot comes or
goes. What is in a slot, and who may read or write it, is the cache's business.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        moves: changes whenever memory is freed: what was captured with the old addresses is not valid any more.
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
        """Take memory for every slot of the cache that has none, the layers in turn; shrink it to what there is.

        Returns:
            how many slots could not be made.
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
                self._give_up(missing[made:])
                return len(missing) - made
            self._views[layer] = self._tables[layer] = None
        return 0

    def memory(self, layer: int, slot: int) -> Tensor:
        """Return a slot's memory, uint8."""
        return self._slots[layer][slot]

    def free(self, layer: int, slot: int) -> int:
        """Give back a slot that the cache has retired, and return its bytes."""
        memory = self._slots[layer].pop(slot, None)
        self._views[layer] = self._tables[layer] = None
        self.moves += 1
        if memory is None:
            return 0
        self._accelerator.release(memory)
        return memory.nbytes

    def views(self, layer: int) -> list[Expert]:
        """Return the experts as they lie in a layer's slots, by slot number, then in the staging buffers."""
        views = self._views[layer]
        if views is None:
            slots, nowhere = self._slots[layer], self.staging[0]
            memories = [slots.get(slot, nowhere) for slot in range(self._store.experts)] + self.staging
            views = self._views[layer] = [self._store.view(layer, memory) for memory in memories]
        return views

    def staging_index(self, buffer: int) -> int:
        """Return where in `views` a staging buffer stands."""
        return self._store.experts + buffer

    def table(self, layer: int) -> Tensor | None:
        """Return the slot of each expert, int64 [E] on the accelerator, if all of them are there; else None."""
        if self._tables[layer] is None and self._cache.quotas[layer] == self._store.experts:
            places = [self._cache.state(layer, expert) for expert in range(self._store.experts)]
            slots = [place[0] for place in places if place is not None and place[1] is SlotState.READY]
            if len(slots) == len(places):
                self._tables[layer] = self._accelerator.to_device(torch.tensor(slots))
        return self._tables[layer]

    def _give_up(self, unmade: Sequence[tuple[int, int]]) -> None:
        """Shrink the cache by slots that have no memory."""
        for layer in {layer for _, layer in unmade}:
            for slot in self._cache.resize(layer, len(self._slots[layer])):
                self.free(layer, slot)
