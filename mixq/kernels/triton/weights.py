"""Descriptions of weights for kernels, and tables on the GPU with the addresses of a layer's experts.

Contract: nothing is copied or repacked; a description holds views of a weight, a slot table only addresses. A table is
valid as long as its list of experts, to which it has no reference: freed slots must not be in any table. For what
cannot be described (nf4, unaligned addresses, experts in different formats) the result is None, and other code is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels.reference import Expert, Weight
from mixq.kernels.triton.formats import BF16, BYTES, Format, codes_of, tensors_of

ALIGNMENT = 16
"""Bytes of the widest load. The trunk's tensors are at multiples of 256, a slot's at multiples of 64."""

ADDRESSES = 3
"""In a slot table, of each matrix: codes, scales, row scales."""

_INT4_TABLE = tuple(range(-8, 8))


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [N, K] for the kernels."""

    format: Format
    shape: tuple[int, int]
    # int32 view; scales: int8, int16 (the bits of bfloat16) or float16; row_scale: float32; table: int8 [16]. For a
    # format without one of them, any tensor.
    codes: Tensor
    scales: Tensor
    row_scale: Tensor
    table: Tensor


@dataclass(frozen=True, slots=True)
class SlotTable:
    """A layer's experts: w1, w2, w3 of each slot."""

    addresses: Tensor  # int64 [S, 3, ADDRESSES] on the device
    formats: tuple[Format, Format, Format]  # of w1, w2 and w3. D, F: hidden and inner size.
    tables: tuple[Tensor, Tensor, Tensor]
    slots: int
    D: int
    F: int
    alive: weakref.ref[Tensor]  # the first slot's memory, while it exists


class Weights:
    """The descriptions so far. Described weights are kept alive; lists of experts are not."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._matrices: dict[int, tuple[Weight, Matrix | None]] = {}
        self._slots: dict[int, SlotTable] = {}
        self._int4 = torch.tensor(_INT4_TABLE, dtype=torch.int8, device=device)

    def matrix(self, weight: Weight) -> Matrix | None:
        """Return the description of a weight; None if the kernels do not support it."""
        found = self._matrices.get(id(weight))
        if found is None:
            found = self._matrices[id(weight)] = weight, self._describe(weight)
        return found[1]

    def slots(self, experts: Sequence[Expert]) -> SlotTable | None:
        """Return the table of a list of experts; None if the kernels do not support them.

        It is created when the list is used first, which copies a few addresses to the device and waits, so never in a
        captured graph.
        """
        table = self._slots.get(id(experts))
        if table is not None and table.alive() is codes_of(experts[0][0]):
            return table
        self._slots = {key: old for key, old in self._slots.items() if old.alive() is not None}
        table = self._tabulate(experts)
        if table is not None:
            self._slots[id(experts)] = table
        return table

    def _describe(self, weight: Weight) -> Matrix | None:
        form = Format.of(weight)
        if form is None or not _loadable(weight, form):
            return None
        N, K = weight.shape
        codes = codes_of(weight).view(torch.int32)
        if isinstance(weight, Tensor):
            return Matrix(form, (N, K), codes, codes, codes, self._int4)
        scales = weight.tensors["weight_scale"]
        if scales.dtype == torch.bfloat16:
            scales = scales.view(torch.int16)
        row_scale = weight.tensors.get("weight_row_scale", scales)
        return Matrix(form, (N, K), codes, scales, row_scale, self._table(weight))

    def _table(self, weight: Weight) -> Tensor:
        if isinstance(weight, PackedLinear) and weight.table is not None:
            return weight.table
        return self._int4

    def _tabulate(self, experts: Sequence[Expert]) -> SlotTable | None:
        first = experts[0]
        formats = [Format.of(weight) for weight in first]
        if any(form is None for form in formats):
            return None
        for expert in experts:
            for weight, form, like in zip(expert, formats, first, strict=True):
                assert form is not None
                if Format.of(weight) != form or weight.shape != like.shape or not _loadable(weight, form):
                    return None
        rows = [[[t.data_ptr() for t in _padded(tensors_of(weight))] for weight in expert] for expert in experts]
        w1, w2, w3 = formats
        assert w1 is not None
        assert w2 is not None
        assert w3 is not None
        F, D = first[0].shape
        return SlotTable(
            torch.tensor(rows, dtype=torch.int64).to(self._device),
            (w1, w2, w3),
            (self._table(first[0]), self._table(first[1]), self._table(first[2])),
            len(experts),
            D,
            F,
            weakref.ref(codes_of(first[0])),
        )


def _padded(tensors: list[Tensor]) -> list[Tensor]:
    return tensors + tensors[:1] * (ADDRESSES - len(tensors))


def _loadable(weight: Weight, form: Format) -> bool:
    """Whether every load of a kernel is aligned: whole words, rows of whole words, the widest load at each base."""
    K = weight.shape[1]
    whole = K % 8 == 0 if form.kind == BF16 else K % (32 if form.kind == BYTES else 16) == 0
    tensors = tensors_of(weight)
    return whole and all(t.is_contiguous() and t.data_ptr() % ALIGNMENT == 0 for t in tensors)
