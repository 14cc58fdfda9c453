"""The experts of a model in host memory, and the layout of an expert in a slot.

Contract: a slot holds an expert's tensors as on disk, not repacked: `pieces` lists the host bytes and their places in a
slot, `view` returns the expert in a slot's memory. Tensors that are adjacent in file and slot are one piece: a shard
written by mixq has three per expert.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.formats.weights import Tensors
from mixq.kernels.reference import Expert, Weight
from mixq.system.huge_pages import allocate

ALIGNMENT = 64
"""Alignment of each tensor in a slot, as in a shard: that of the widest vector loads."""

MATRICES = ("w1", "w2", "w3")


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Host bytes of an expert, and their place in a slot."""

    offset: int
    source: Tensor


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor of a slot: its matrix, suffix and first byte."""

    matrix: int
    suffix: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


class ExpertStore:
    """Every expert of a model.

    Attributes:
        layers, experts: how many layers, and experts in each.
        slot_bytes: of an expert in a slot, the most of all layers.
        reason: why its experts cannot be cached in slots; None if they can.
    """

    def __init__(self, folder: Tensors) -> None:
        config = folder.config
        self.layers, self.experts = config.num_hidden_layers, config.num_local_experts
        self._experts = [
            [expert_weights(folder, layer, expert) for expert in range(self.experts)] for layer in range(self.layers)
        ]
        self._places = [_layout(layer[0]) for layer in self._experts]
        self.reason = self._why_not()
        self.slot_bytes = max(_end(places) for places in self._places)

    def layer(self, layer: int) -> list[Expert]:
        """Return the experts of a layer, in host memory."""
        return self._experts[layer]

    def expert_bytes(self, layer: int) -> int:
        """Return the tensors of a slot of this layer."""
        return _end(self._places[layer])

    def pieces(self, layer: int, expert: int) -> Iterator[Piece]:
        """Yield an expert's bytes in the order of a slot, with adjacent ones joined."""
        weights = self._experts[layer][expert]
        joined: tuple[int, int, int] | None = None  # offset, address, bytes
        for place in self._places[layer]:
            tensor = _tensors(weights[place.matrix])[place.suffix]
            address, nbytes = tensor.data_ptr(), place.nbytes
            if joined is not None and joined[0] + joined[2] == place.offset and joined[1] + joined[2] == address:
                joined = (joined[0], joined[1], joined[2] + nbytes)
                continue
            if joined is not None:
                yield Piece(joined[0], _bytes_at(joined[1], joined[2], weights))
            joined = (place.offset, address, nbytes)
        assert joined is not None
        yield Piece(joined[0], _bytes_at(joined[1], joined[2], weights))

    def view(self, layer: int, memory: Tensor) -> Expert:
        """Return an expert of this layer in a slot's memory, uint8 [slot_bytes] of any device."""
        tensors: list[dict[str, Tensor]] = [{} for _ in MATRICES]
        for place in self._places[layer]:
            data = memory[place.offset : place.offset + place.nbytes]
            tensors[place.matrix][place.suffix] = data.view(place.dtype).view(place.shape)
        w1, w2, w3 = (
            _rebuilt(weight, found, memory.device)
            for weight, found in zip(self._experts[layer][0], tensors, strict=True)
        )
        return w1, w2, w3

    def move_to_registered(
        self, register: Callable[[Tensor], bool], limit: int, progress: Callable[[float], None] = lambda share: None
    ) -> int:
        """Move experts into memory that the accelerator copies from directly, layer by layer; return the bytes moved.

        The mapping of a file is not registered, since its pages come and go. Layers after the first refusal, and beyond
        the limit, are not moved.

        Args:
            register: registers memory with the accelerator, or refuses.
            limit: most bytes to register.
            progress: called with the share of the layers done.
        """
        moved = 0
        for layer in range(self.layers):
            stride = self.expert_bytes(layer)
            if moved + stride * self.experts > limit:
                break
            arena = allocate(stride * self.experts)
            for expert in range(self.experts):
                for piece in self.pieces(layer, expert):
                    start = expert * stride + piece.offset
                    arena[start : start + len(piece.source)] = piece.source
            if not register(arena):
                break
            parts = [arena[expert * stride : (expert + 1) * stride] for expert in range(self.experts)]
            self._experts[layer] = [self.view(layer, part) for part in parts]
            moved += len(arena)
            progress((layer + 1) / self.layers)
        return moved

    def _why_not(self) -> str | None:
        for places, experts in zip(self._places, self._experts, strict=True):
            for expert in experts:
                if any(isinstance(weight, PackedLinear) and weight.scheme.name == "nf4" for weight in expert):
                    return "nf4 experts have no cache slots"
                if _layout(expert) != places:
                    return "the experts of a layer are in different formats"
                if not all(t.is_contiguous() for weight in expert for t in _tensors(weight).values()):
                    return "the experts' tensors are not contiguous"
        return None


def expert_weights(folder: Tensors, layer: int, expert: int) -> Expert:
    """Return an expert's matrices: w1 is the gate, w2 the down, w3 the up projection."""
    prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
    w1, w2, w3 = (folder.linear(f"{prefix}.{matrix}") for matrix in MATRICES)
    return w1, w2, w3


def _tensors(weight: Weight) -> dict[str, Tensor]:
    """Return a weight's tensors for kernels, without `weight_shape`."""
    if isinstance(weight, Tensor):
        return {"weight": weight}
    return {suffix: tensor for suffix, tensor in weight.tensors.items() if suffix != "weight_shape"}


def _layout(expert: Expert) -> list[_Place]:
    """Return the places of an expert's tensors: suffix by suffix, as in a shard."""
    suffixes = list(dict.fromkeys(suffix for weight in expert for suffix in _tensors(weight)))
    places: list[_Place] = []
    for suffix in suffixes:
        for matrix, weight in enumerate(expert):
            tensor = _tensors(weight).get(suffix)
            if tensor is not None:
                places.append(_Place(matrix, suffix, _end(places), tuple(tensor.shape), tensor.dtype))
    return places


def _end(places: list[_Place]) -> int:
    if not places:
        return 0
    end = places[-1].offset + places[-1].nbytes
    return -(-end // ALIGNMENT) * ALIGNMENT


def _rebuilt(weight: Weight, tensors: dict[str, Tensor], device: torch.device) -> Weight:
    if isinstance(weight, Tensor):
        return tensors["weight"]
    if "weight_shape" in weight.tensors:
        tensors["weight_shape"] = weight.tensors["weight_shape"]
    table = None if weight.table is None else weight.table.to(device)
    return PackedLinear(weight.scheme, weight.shape, tensors, table)


def _bytes_at(address: int, nbytes: int, owner: Expert) -> Tensor:
    """Return an expert's memory as a tensor that keeps the expert alive, since a copy may end after the model."""
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    memory.owner = owner  # type: ignore[attr-defined]
    return torch.frombuffer(memory, dtype=torch.uint8)
