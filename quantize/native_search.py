"""The scale search in C++: bit-identical to `scale_search.reference_search`, about a hundred times as fast.

Contract: `NativeSearch.search` takes nl4, w4 and w8. Every pointer that is passed belongs to a contiguous tensor whose
dtype and shape were created or checked here. Codes are returned packed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int8, c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.errors import DoesNotFitError
from mixq.formats import int_groups, nl4
from mixq.formats.packed import PackedLinear, tensor_specs
from mixq.formats.scheme import Scheme
from mixq.kernels import native_library
from mixq.kernels.native_library import SearchLoss, SearchSource
from mixq.quantize.quantized import Loss, Quantized, summed_up
from mixq.quantize.threads import map_in_threads, serial_operations

SCHEMES = ("nl4", "w4", "w8")

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_MEMORY = 2


@dataclass(frozen=True, slots=True)
class NativeSearch:
    """The search of a library for an instruction set, which the CPU must have."""

    library: ctypes.CDLL
    isa: int

    @classmethod
    def find(cls) -> NativeSearch | None:
        """Return the search for this CPU, or None without a library; see `mixq.kernels.native_library`."""
        library = native_library.library()
        return None if library is None else cls(library, native_library.isa())

    def search(
        self,
        weight: Tensor,
        scheme: Scheme,
        table: Sequence[int],
        scale_dtype: torch.dtype,
        block_rows: int,
        importance: Tensor | None = None,
    ) -> Quantized:
        """Quantize a matrix [N, K] as `scale_search.search` does, which has checked its shape.

        `importance` is float32 [K], normalized.

        Raises:
            DoesNotFitError: there is too little memory for one row.
        """
        if scale_dtype not in int_groups.SCALE_DTYPES:
            raise ValueError(f"scales are bf16 or f16, not {scale_dtype}")
        N, K = weight.shape
        if importance is not None and (importance.dtype != torch.float32 or importance.shape != (K,)):
            raise ValueError(f"importance must be float32 [{K}]")
        counts = None if importance is None else importance.contiguous()
        specs = tensor_specs(scheme, (N, K), scale_dtype)
        packed = {suffix: torch.empty(shape, dtype=dtype) for suffix, (dtype, shape) in specs.items()}
        values = nl4.table_tensor(table) if scheme.name == "nl4" else None
        places = (c_int8 * 16)(*table) if scheme.name == "nl4" else None

        def work(start: int) -> Loss:
            block = weight[start : start + block_rows].contiguous()
            if block.dtype not in _TYPES or block.device.type != "cpu":
                block = block.to("cpu", torch.float32)
            rows, at = len(block), None if counts is None else counts.data_ptr()
            source = SearchSource(block.data_ptr(), rows, K, _TYPES[block.dtype], scheme.group_size, at)
            sums, groups = [(c_double * rows)() for _ in range(3)], c_int64()
            loss = SearchLoss(*(ctypes.addressof(part) for part in (*sums, groups)))
            if places is not None:
                parts = ("weight_codes", "weight_scale", "weight_row_scale")
                pointers = [packed[suffix][start:].data_ptr() for suffix in parts]
                failed = self.library.mixq_search_nl4(self.isa, source, places, *pointers, loss)
            else:
                pointers = [packed[suffix][start:].data_ptr() for suffix in ("weight_packed", "weight_scale")]
                failed = self.library.mixq_search_integers(
                    self.isa, source, scheme.bits, _TYPES[scale_dtype], *pointers, loss
                )
            if failed == _NO_MEMORY:
                raise DoesNotFitError(f"too little memory to quantize a row of {K} weights.")
            assert not failed, "the library refused arguments that were checked"
            return Loss(list(sums[0]), list(sums[1]), list(sums[2]), groups.value)

        with serial_operations() as threads:
            losses = map_in_threads(work, range(0, N, block_rows), threads)
        if "weight_shape" in packed:
            packed["weight_shape"].copy_(torch.tensor((N, K)))
        return summed_up(PackedLinear(scheme, (N, K), packed, values), losses)
