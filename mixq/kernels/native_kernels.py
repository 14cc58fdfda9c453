"""The native kernels: the operations of the network on the CPU.

Contract: `NativeKernels` computes what `mixq.kernels.reference` computes, from the same bytes. Every pointer that is
passed to the library belongs to a checked tensor, which is kept alive.

Axes: T tokens, N out, K in, D hidden, F ffn, E experts, A active experts, H heads, KV kv heads, C head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mixq.errors import DoesNotFitError
from mixq.kernels import native_library, reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.native_library import (
    Fetch,
    KVCache,
    Matrix,
    isa_name,
    kv_cache_of,
    library,
    matrix_of,
    unavailable_reason,
)
from mixq.kernels.network_weights import NetworkWeights, Rows
from mixq.kernels.reference import Expert, Weight

_TORCH_ROWS = 32
"""Unquantized weights are multiplied by more rows with torch's bfloat16 GEMM, where the CPU computes it fast."""


@dataclass(slots=True)
class _Bound:
    """The C descriptions of some weights, with the weights to which they point."""

    weights: object
    matrices: ctypes.Array[Matrix] | None
    pointers: ctypes.Array[c_void_p] | None = None
    shapes: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _BoundNetwork:
    """The C description of a network, with that of its layers, to which it points."""

    layers: ctypes.Array[native_library.Layer]
    network: native_library.Network


class NativeKernels:
    """The operations of `dispatch.Kernels` on the CPU, with separate threads and working memory.

    Args:
        threads: including the calling one.
        isa: the instruction set; None takes `native_library.isa()`.

    Raises:
        DoesNotFitError: the system refused threads or memory.
        RuntimeError: there is no library.
    """

    exact = False
    uses_torch_threads = False  # torch gets threads when it is first used

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
        self.fetch = native_library.DEFAULT_FETCH
        self._torch_rows = _TORCH_ROWS if self.isa == found.mixq_best_isa() and found.mixq_has_bf16() else None
        self._bound: dict[int, _Bound] = {}
        self._networks: dict[NetworkWeights, _BoundNetwork | None] = {}
        self._rows: WeakKeyDictionary[KVLayer, native_library.Rows | None] = WeakKeyDictionary()

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self._library.mixq_close(self.context)

    def step(self, network: NetworkWeights, rows: Sequence[Rows], *, all_logits: bool) -> tuple[Tensor, Tensor] | None:
        ids = [token_id for row in rows for token_id in row.token_ids]
        T, S, V = len(ids), len(rows), network.lm_head.shape[0]
        if network not in self._networks:
            self._networks[network] = self._bind_network(network)
        bound = self._networks[network]
        sequences = [found for row in rows if (found := self._bind_rows(*row)) is not None]
        if bound is None or len(sequences) < S:
            return None
        if not (min(ids) >= 0 and max(ids) < network.embed_tokens.shape[0]):
            raise IndexError("a token id is outside the vocabulary")
        logits = torch.empty(T if all_logits else S, V)
        topk_ids = torch.empty(len(network.layers), T, network.num_experts_per_tok, dtype=torch.int64)
        self._library.mixq_step(
            self.context,
            bound.network,
            (c_int64 * T)(*ids),
            S,
            (native_library.Rows * S)(*sequences),
            all_logits,
            topk_ids.data_ptr(),
            logits.data_ptr(),
        )
        return logits, topk_ids

    @property
    def fetch(self) -> Fetch:
        """How decode fetches weights (`mixq.kernels.fetch_plan`)."""
        return self._fetch

    @fetch.setter
    def fetch(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._library.mixq_set_fetch(self.context, fetch)

    def multiply(self, matrix: Matrix, x: Tensor, out: Tensor) -> None:
        """out [T, N] = x [T, K] times a matrix whose memory the caller keeps."""
        pointers, places = (c_void_p * 1)(ctypes.addressof(matrix)), (c_void_p * 1)(out.data_ptr())
        self._library.mixq_linear(self.context, 1, pointers, x.data_ptr(), len(x), places)

    def busy_ns(self) -> int:
        """Return the nanoseconds spent inside the library so far."""
        return int(self._library.mixq_busy_ns(self.context))

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        bound = self._bind(weight, (weight,))
        if bound.matrices is None:
            return reference.linear(x, weight)
        if isinstance(weight, Tensor) and self._some_for_torch((weight,), len(x)):
            torch.set_num_threads(self.threads)
            return (x.bfloat16() @ weight.T).float()
        return self._linears(x, bound)[0]

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
        """Return [x @ w.T for w in weights] in one call."""
        bound = self._bind(weights, weights)
        if bound.matrices is None or self._some_for_torch(weights, len(x)):
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
        scores = self.router_logits(x, weight)
        T, E = scores.shape
        topk_ids, topk_weights = torch.empty(T, A, dtype=torch.int64), torch.empty(T, A)
        self._library.mixq_choose(
            self.context, scores.data_ptr(), T, E, A, topk_ids.data_ptr(), topk_weights.data_ptr()
        )
        return topk_weights, topk_ids

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
        if bound.matrices is None or self._some_for_torch(experts[0], len(x)):
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

    def _bind_rows(self, kv: Sequence[KVLayer], position: int, token_ids: Sequence[int]) -> native_library.Rows | None:
        """Return the C description of a sequence's next tokens; None if its cache is not supported."""
        if kv[0] not in self._rows:  # which is freed with the other layers
            self._rows[kv[0]] = native_library.rows_of(kv)
        rows = self._rows[kv[0]]
        if rows is not None:
            rows.position, rows.count = position, len(token_ids)
        return rows

    def _bind_network(self, network: NetworkWeights) -> _BoundNetwork | None:
        """Return the C description of a network; None if one of its weights is not supported."""
        norms = [network.norm]
        layers = []
        for layer in network.layers:
            norms += layer.input_layernorm, layer.post_attention_layernorm
            qkv = self._bind(layer.qkv_proj, layer.qkv_proj)
            o = self._bind(layer.o_proj, (layer.o_proj,))
            gate = None if layer.gate is None else self._bind(layer.gate, (layer.gate,), float32=True)
            experts = self._bind(layer.experts, [weight for expert in layer.experts for weight in expert])
            layers.append((layer, qkv, o, gate, experts))
        head = self._bind(network.lm_head, (network.lm_head,))
        bounds = [head, *[bound for _, *bounds in layers for bound in bounds if bound is not None]]
        plain = [network.embed_tokens, *norms]
        if any(bound.matrices is None for bound in bounds) or not all(
            tensor.dtype == torch.bfloat16 and tensor.is_contiguous() for tensor in plain
        ):
            return None
        described = [
            native_library.Layer(
                layer.input_layernorm.data_ptr(),
                layer.post_attention_layernorm.data_ptr(),
                _address(qkv.pointers),
                _address(o.matrices),
                None if gate is None else _address(gate.matrices),
                _address(experts.matrices),
            )
            for layer, qkv, o, gate, experts in layers
        ]
        array = (native_library.Layer * len(described))(*described)
        return _BoundNetwork(
            array,
            native_library.Network(
                network.embed_tokens.data_ptr(),
                _address(array),
                len(array),
                network.norm.data_ptr(),
                _address(head.matrices),
                network.cos.data_ptr(),
                network.sin.data_ptr(),
                network.num_experts_per_tok,
                network.window or 0,
                network.eps,
            ),
        )

    def _some_for_torch(self, weights: Sequence[Weight], rows: int) -> bool:
        return self._torch_rows is not None and rows > self._torch_rows and any(isinstance(w, Tensor) for w in weights)

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


def _address(array: ctypes.Array[Any] | None) -> int:
    assert array is not None
    return ctypes.addressof(array)
