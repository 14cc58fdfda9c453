"""The native kernels: the operations of the network on the CPU.

Contract: `NativeKernels` computes what `mixq.kernels.reference` computes, from the same bytes. Every pointer that is
passed to the library belongs to a checked tensor, which is kept alive.

Axes: T tokens, N out, K in, D hidden, F ffn, E experts, A active experts, H heads, KV kv heads, C head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixq.errors import DoesNotFitError
from mixq.kernels import native_library, reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.native_library import KVCache, Matrix, isa_name, kv_cache_of, library, matrix_of, unavailable_reason
from mixq.kernels.reference import Expert, Weight

_TILE_WEIGHTS = 1 << 22
"""Weights dequantized at a time for torch's GEMM: 8 MiB, which fit into the last-level cache."""


@dataclass(slots=True)
class _Bound:
    """The C descriptions of some weights, with the weights to which they point."""

    weights: object
    matrices: ctypes.Array[Matrix] | None
    pointers: ctypes.Array[c_void_p] | None = None
    shapes: list[tuple[int, int]] = field(default_factory=list)


class NativeKernels:
    """The operations of `dispatch.Kernels` on the CPU, with separate threads and working memory.

    Attributes:
        uses_torch_threads: many rows use torch's bfloat16 GEMM, which uses AMX if the CPU has it.

    Args:
        threads: including the calling one.
        isa: the instruction set; None takes `native_library.isa()`.

    Raises:
        DoesNotFitError: the system refused threads or memory.
        RuntimeError: there is no library.
    """

    exact = False

    def __init__(self, threads: int, *, isa: int | None = None) -> None:
        found = library()
        if found is None:
            raise RuntimeError(unavailable_reason())
        self._library = found
        self.isa = native_library.isa() if isa is None else isa
        self.threads = threads
        self.name = isa_name(self.isa)
        self.device = torch.device("cpu")
        self.context = found.mixq_open(threads, self.isa)
        if not self.context:
            raise DoesNotFitError(
                f"{threads} threads for the CPU kernels could not be started.", hint="Use a smaller --threads."
            )
        self.uses_torch_threads = self.isa == found.mixq_best_isa() and bool(found.mixq_has_amx())
        self._tile: Tensor | None = None
        self._bound: dict[int, _Bound] = {}

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self._library.mixq_close(self.context)

    @property
    def integer_rows(self) -> int:
        """Most rows of activations for the integer kernels; more are multiplied in bfloat16."""
        return int(self._library.mixq_integer_rows(self.context))

    @integer_rows.setter
    def integer_rows(self, rows: int) -> None:
        self._library.mixq_set_integer_rows(self.context, rows)

    def busy_ns(self) -> int:
        """Return the nanoseconds spent inside the library so far."""
        return int(self._library.mixq_busy_ns(self.context))

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        bound = self._bind(weight, (weight,))
        if bound.matrices is None:
            return reference.linear(x, weight, integer_rows=self.integer_rows)
        if self.uses_torch_threads and x.shape[0] > self.integer_rows:
            return self._torch_linear(x, bound)
        return self._linears(x, bound)[0]

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
        """Return [x @ w.T for w in weights] in one call."""
        bound = self._bind(weights, weights)
        if bound.matrices is None or (self.uses_torch_threads and x.shape[0] > self.integer_rows):
            return [self.linear(x, weight) for weight in weights]
        return self._linears(x, bound)

    def router_logits(self, x: Tensor, weight: Tensor) -> Tensor:
        bound = self._bind(weight, (weight,), float32=True)
        if bound.matrices is None:
            return reference.router_logits(x, weight)
        x = x.contiguous()
        out = torch.empty(x.shape[0], weight.shape[0])
        self._library.mixq_router(self.context, bound.matrices, x.data_ptr(), x.shape[0], out.data_ptr())
        return out

    def route(self, x: Tensor, weight: Tensor, A: int) -> tuple[Tensor, Tensor]:
        return reference.route(self.router_logits(x, weight), A)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if weight.dtype != torch.bfloat16:
            return reference.rms_norm(x, weight, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        self._library.mixq_rms_norm(
            self.context, x.data_ptr(), weight.data_ptr(), eps, x.shape[0], x.shape[1], out.data_ptr()
        )
        return out

    def experts(self, x: Tensor, experts: Sequence[Expert], topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        bound = self._bind(experts, [weight for expert in experts for weight in expert])
        if bound.matrices is None or (self.uses_torch_threads and x.shape[0] > self.integer_rows):
            return reference.experts(x, experts, topk_ids, topk_weights, self.linear)
        x, topk_ids, topk_weights = x.contiguous(), topk_ids.contiguous(), topk_weights.contiguous()
        out = torch.empty_like(x)
        self._library.mixq_experts(
            self.context,
            bound.matrices,
            len(experts),
            x.data_ptr(),
            *topk_ids.shape,
            topk_ids.data_ptr(),
            topk_weights.data_ptr(),
            out.data_ptr(),
        )
        return out

    def rotary_append(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, kv: KVLayer, position: int | Tensor
    ) -> Tensor:
        cos, sin = reference.angles(cos, sin, position, len(q))
        position = int(position)
        cache = kv_cache_of(kv)
        if cache is None:
            return reference.rotary_append(q, k, v, cos, sin, kv, position)
        q, k, v, cos, sin = (x.contiguous() for x in (q, k, v, cos, sin))
        self._library.mixq_rotary_append(
            self.context, cache, *[x.data_ptr() for x in (q, k, v, cos, sin)], *q.shape[:2], position
        )
        return q

    def attention_rows(self, q: Tensor, kv: KVLayer, position: int | Tensor, window: int | None) -> Tensor:
        position = int(position)
        cache = kv_cache_of(kv)
        if cache is None:
            return reference.attention_rows(q, kv, position, window)
        return self._attention(q, cache, position, window)

    def attention_prefill(self, q: Tensor, kv: KVLayer, position: int, window: int | None) -> Tensor:
        """As `reference.attention_prefill`; a row's result is bit-identical to `attention_rows`."""
        cache = kv_cache_of(kv)
        if cache is None:
            return reference.attention_prefill(q, kv, position, window)
        return self._attention(q, cache, position, window)

    def _attention(self, q: Tensor, cache: KVCache, position: int, window: int | None) -> Tensor:
        q = q.contiguous()
        out = torch.empty_like(q)
        self._library.mixq_attention(
            self.context, cache, q.data_ptr(), *q.shape[:2], position, window or 0, out.data_ptr()
        )
        return out

    def _torch_linear(self, x: Tensor, bound: _Bound) -> Tensor:
        """Dequantize tiles of rows into a reused buffer, and multiply with torch."""
        (N, K), rows = bound.shapes[0], x.bfloat16()
        if self._tile is None or self._tile.shape[1] != K:
            self._tile = torch.empty(_TILE_WEIGHTS // K + 1, K, dtype=torch.bfloat16)
        out = torch.empty(x.shape[0], N)
        for begin in range(0, N, len(self._tile)):
            tile = self._tile[: min(len(self._tile), N - begin)]
            self._library.mixq_dequantize(self.context, bound.matrices, begin, begin + len(tile), tile.data_ptr())
            out[:, begin : begin + len(tile)] = rows @ tile.T
        return out

    def _linears(self, x: Tensor, bound: _Bound) -> list[Tensor]:
        x = x.contiguous()
        T = x.shape[0]
        out = [torch.empty(T, N) for N, _ in bound.shapes]
        places = (c_void_p * len(out))(*[tensor.data_ptr() for tensor in out])
        self._library.mixq_linear(self.context, len(out), bound.pointers, x.data_ptr(), T, places)
        return out

    def _bind(self, key: object, weights: Sequence[Weight], *, float32: bool = False) -> _Bound:
        """Return the C descriptions of `weights`, created once for each `key` object, which is kept alive."""
        bound = self._bound.get(id(key))
        if bound is None:
            bound = self._bound[id(key)] = _describe(key, weights, float32=float32)
            if bound.matrices is None:  # torch multiplies these (nf4, float16): with as many threads
                torch.set_num_threads(self.threads)
        return bound


def _describe(key: object, weights: Sequence[Weight], *, float32: bool) -> _Bound:
    matrices = [matrix_of(weight, float32=float32) for weight in weights]
    if any(matrix is None for matrix in matrices):
        return _Bound(key, None)
    array = (Matrix * len(matrices))(*matrices)  # type: ignore[misc]
    pointers = (c_void_p * len(matrices))(*[ctypes.addressof(matrix) for matrix in array])
    return _Bound(key, array, pointers, [(matrix.rows, matrix.columns) for matrix in array])
