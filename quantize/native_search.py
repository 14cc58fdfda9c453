"""The scale search in C++: bit-identical to `scale_search.reference_search`, about a hundred times as fast.

Contract: `search` takes nl4, w4 and w8; there must be a library, see `mixq.kernels.native_library`. Every pointer that
is passed belongs to a contiguous tensor whose dtype and shape were created or checked here. Codes are returned packed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int8, c_int64

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


def search(
    weight: Tensor,
    scheme: Scheme,
    table: Sequence[int],
    scale_dtype: torch.dtype,
    block_rows: int,
    importance: Tensor | None = None,
    isa: int | None = None,
) -> Quantized:
    """Quantize a matrix [N, K] as `scale_search.search` does, which has checked its shape.

    `importance` is float32 [K], normalized; `isa` an instruction set of this CPU, by default the best.

    Raises:
        DoesNotFitError: there is too little memory for one row.
    """
    library = native_library.library()
    assert library is not None
    isa = native_library.isa() if isa is None else isa
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
            failed = library.mixq_search_nl4(isa, source, places, *pointers, loss)
        else:
            pointers = [packed[suffix][start:].data_ptr() for suffix in ("weight_packed", "weight_scale")]
            failed = library.mixq_search_integers(isa, source, scheme.bits, _TYPES[scale_dtype], *pointers, loss)
        if failed == _NO_MEMORY:
            raise DoesNotFitError(f"too little memory to quantize a row of {K} weights.")
        assert not failed, "the library refused arguments that were checked"
        return Loss(list(sums[0]), list(sums[1]), list(sums[2]), groups.value)

    with serial_operations() as threads:
        losses = map_in_threads(work, range(0, N, block_rows), threads)
    if "weight_shape" in packed:
        packed["weight_shape"].copy_(torch.tensor((N, K)))
    return summed_up(PackedLinear(scheme, (N, K), packed, values), losses)
