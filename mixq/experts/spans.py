"""Finds each expert's bytes in a model folder's files, in as few ranges as possible.

Contract: in a shard written by mixq, an expert has one range per dtype, since its three matrices are contiguous.
Tensors that are copied on reading (unaligned, from other programs) are omitted.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from mixq.experts.store import expert_weights
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import MappedShard
from mixq.formats.packed import PackedLinear


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes start to end of a mapped file."""

    shard: MappedShard
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def expert_spans(folder: ModelFolder) -> list[list[list[Span]]]:
    """Return the ranges of each layer's experts, with adjacent ones joined: [layer][expert]."""
    shards = sorted(folder.mapped, key=lambda shard: shard.address)
    bases = [shard.address for shard in shards]
    config = folder.config

    def spans(layer: int, expert: int) -> list[Span]:
        found: list[Span] = []
        tensors = [
            tensor
            for weight in expert_weights(folder, layer, expert)
            for tensor in (weight.tensors.values() if isinstance(weight, PackedLinear) else (weight,))
        ]
        for address, nbytes in sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors):
            i = bisect_right(bases, address) - 1
            start = address - bases[i]
            if i < 0 or start + nbytes > shards[i].header.file_size:
                continue  # copied on reading, since it was not aligned in the file
            if found and found[-1].shard is shards[i] and found[-1].end == start:
                found[-1] = Span(shards[i], found[-1].start, start + nbytes)
            else:
                found.append(Span(shards[i], start, start + nbytes))
        return found

    return [
        [spans(layer, expert) for expert in range(config.num_local_experts)]
        for layer in range(config.num_hidden_layers)
    ]
