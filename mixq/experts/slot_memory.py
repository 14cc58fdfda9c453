"""The accelerator's memory for experts: slots, the tensors in them that kernels read, and two staging buffers.

Contract: slot i of a layer is the same memory until it is freed; each slot is a separate allocation, so that freeing
one frees memory. Kernels read `views`: the same list object until a slot is created or freed. The cache decides what is
in a slot, and when it may be read or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Accelerator, Launch, OutOfMemory
from mixq.experts.cache import ExpertCache, SlotState
from mixq.experts.store import ExpertStore
from mixq.experts.transfer import Upload, Uploader
from mixq.kernels.reference import Expert


class SlotMemory:
    """The slots of every layer, and staging buffers.

    Args:
        cache: has the slots.
        slot_bytes: of each.
        staging: number of buffers.

    Attributes:
        staging: the buffers, uint8 [slot_bytes].
        moves: changes when memory is freed, since graphs captured with old addresses are then invalid.
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

        If memory runs out, the cache is shrunk; returns the number of slots that could not be allocated.
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


@dataclass(slots=True)
class _Buffer:
    memory: Tensor
    key: tuple[int, int] | None = None
    upload: Upload | None = None
    reader: Launch | None = None
    claimed: bool = False


class Staging:
    """Buffers with the size of a slot, for experts without a slot: one is used while the other is filled.

    At most as many as there are buffers are claimed at a time. They are outside the cache: nothing stays there.
    """

    def __init__(self, memories: list[Tensor], store: ExpertStore, uploader: Uploader) -> None:
        self._buffers = [_Buffer(memory) for memory in memories]
        self._store = store
        self._uploader = uploader

    def __len__(self) -> int:
        return len(self._buffers)

    def find(self, layer: int, expert: int) -> int | None:
        """Return the buffer that holds an expert or is being filled with it."""
        for index, buffer in enumerate(self._buffers):
            if buffer.key == (layer, expert):
                return index
        return None

    def stage(self, layer: int, expert: int) -> int:
        """Return the buffer of an expert; if there is none, copy it to one whose last reader is done."""
        found = self.find(layer, expert)
        if found is not None:
            return found
        unclaimed = [i for i, buffer in enumerate(self._buffers) if not buffer.claimed]
        index = min(unclaimed, key=lambda i: self._buffers[i].key is not None)  # empty ones first
        buffer = self._buffers[index]
        key, pieces = (layer, expert), self._store.pieces(layer, expert)
        buffer.upload = self._uploader.start(key, None, buffer.memory, pieces, demanded=True, after=buffer.reader)
        buffer.key, buffer.reader = key, None
        return index

    def claim(self, layer: int, expert: int) -> int:
        """Stage an expert that will be computed, and keep its buffer until `used`."""
        index = self.stage(layer, expert)
        self._buffers[index].claimed = True
        return index

    def claim_first(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Claim a buffer for each of the first experts, as many as there are; drop claims of an interrupted forward
        pass."""
        for buffer in self._buffers:
            buffer.claimed = False
        return [self.claim(layer, expert) for expert in experts[: len(self)]]

    def upload(self, index: int) -> Upload:
        """Return the copy into a buffer."""
        upload = self._buffers[index].upload
        assert upload is not None
        return upload

    def used(self, index: int, reader: Launch) -> None:
        """Record that a claimed buffer is in use until `reader` is done, and can be reused then."""
        buffer = self._buffers[index]
        buffer.reader, buffer.key, buffer.claimed = reader, None, False

    def forget(self) -> None:
        """Wait for started copies, and empty the buffers."""
        for buffer in self._buffers:
            if buffer.upload is not None:
                buffer.upload.wait()
            buffer.key, buffer.claimed = None, False
