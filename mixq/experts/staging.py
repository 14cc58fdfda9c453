"""Two buffers on the accelerator for experts on their way through: one is computed while the other is copied to.

Contract: `stage` begins to copy an expert into a buffer as soon as nobody reads that any more, on the chance that it is
wanted; `claim` does so, or finds it staged, and keeps the buffer until `used` says who reads it. No more are claimed
at a time than there are buffers. Buffers stand outside the cache: nothing stays there.
"""

from __future__ import annotations

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
        """Return the buffer that has an expert, or is about to."""
        for index, buffer in enumerate(self._buffers):
            if buffer.key == (layer, expert):
                return index
        return None

    def stage(self, layer: int, expert: int) -> int:
        """Return the buffer that has an expert, beginning to copy it where none has."""
        found = self.find(layer, expert)
        if found is not None:
            return found
        unclaimed = [i for i, buffer in enumerate(self._buffers) if not buffer.claimed]
        index = min(unclaimed, key=lambda i: self._buffers[i].key is not None)  # what holds nothing first
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

    def upload(self, index: int) -> Upload:
        """Return the copy into a buffer."""
        upload = self._buffers[index].upload
        assert upload is not None
        return upload

    def release_claims(self) -> None:
        """Nobody will compute what was claimed before: a pass was broken off."""
        for buffer in self._buffers:
            buffer.claimed = False

    def used(self, index: int, reader: Launch) -> None:
        """A claimed buffer is read until `reader` is done, and holds nothing for others any more."""
        buffer = self._buffers[index]
        buffer.reader, buffer.key, buffer.claimed = reader, None, False

    def forget(self) -> None:
        """Wait for what is on its way, and hold nothing."""
        for buffer in self._buffers:
            if buffer.upload is not None:
                buffer.upload.wait()
            buffer.key, buffer.claimed = None, False
