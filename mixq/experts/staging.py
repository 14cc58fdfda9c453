"""Two buffers on the accelerator for experts that get no slot: one is computed while the other is copied to.

Contract: `stage` begins to copy an expert into a buffer once the buffer's last reader is done, because it may be
needed; `claim` does so, or finds it staged, and keeps the buffer until `used` names its reader. No more are claimed at
a time than there are buffers. Buffers are outside the cache: nothing stays there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mixq.experts.accelerators.interface import Launch
from mixq.experts.store import ExpertStore
from mixq.experts.transfer import Upload, Uploader


@dataclass(slots=True)
class _Buffer:
    memory: Tensor
    key: tuple[int, int] | None = None
    upload: Upload | None = None
    reader: Launch | None = None
    claimed: bool = False


class Staging:
    """Buffers of one slot's size each."""

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
        """Return the buffer of an expert; begin to copy it if there is none."""
        found = self.find(layer, expert)
        if found is not None:
            return found
        unclaimed = [i for i, buffer in enumerate(self._buffers) if not buffer.claimed]
        index = min(unclaimed, key=lambda i: self._buffers[i].key is not None)  # empty ones first
        buffer = self._buffers[index]
        buffer.upload = self._uploader.start(
            (layer, expert),
            None,
            buffer.memory,
            self._store.pieces(layer, expert),
            demanded=True,
            after=buffer.reader,
        )
        buffer.key, buffer.reader = (layer, expert), None
        return index

    def claim(self, layer: int, expert: int) -> int:
        """Stage an expert that will be computed."""
        index = self.stage(layer, expert)
        self._buffers[index].claimed = True
        return index

    def claim_first(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Claim a buffer for each of the first experts, as many as there are; drop claims of a pass that broke off."""
        for buffer in self._buffers:
            buffer.claimed = False
        return [self.claim(layer, expert) for expert in experts[: len(self)]]

    def upload(self, index: int) -> Upload:
        """Return the copy into a buffer."""
        upload = self._buffers[index].upload
        assert upload is not None
        return upload

    def used(self, index: int, reader: Launch) -> None:
        """Note that a claimed buffer is read until `reader` is done, and can be filled anew after that."""
        buffer = self._buffers[index]
        buffer.reader, buffer.key, buffer.claimed = reader, None, False

    def forget(self) -> None:
        """Wait for copies that have begun, and empty the buffers."""
        for buffer in self._buffers:
            if buffer.upload is not None:
                buffer.upload.wait()
            buffer.key, buffer.claimed = None, False
