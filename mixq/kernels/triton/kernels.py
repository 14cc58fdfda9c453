"""The class that the network calls: `TritonKernels`, an implementation of `mixq.kernels.dispatch.Kernels`.

Contract: tensors of one device in and out. Up to DECODE_ROWS rows go through the format's arithmetic (`dots`), more
through `prefill`. In decode no call waits for the GPU, reads a tensor on the host, or allocates by a tensor's values.

A captured CUDA graph may assume, for up to DECODE_ROWS rows:

* every call was made before with the same shapes, weights and lists of experts (which compiles kernels and fills tables
  of addresses);
* `position` is a tensor int32 or int64 [1] on the device, cos and sin are the tables of all positions: the graph reads
  the position when it runs, and its grids cover the cache's whole capacity;
* the experts in the slots may change between runs (ids are read on the device), but not the slots' addresses;
* results and intermediates belong to the graph's pool: nothing is kept across calls but descriptions of weights, and
  the last normed rows, which are used only if the very same tensor comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels import reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.network_weights import NetworkWeights, Rows
from mixq.kernels.reference import DECODE_ROWS, Expert, Weight
from mixq.kernels.triton import activations, attention, experts, linears, prefill, router
from mixq.kernels.triton.activations import Prepared
from mixq.kernels.triton.nf4 import Nf4
from mixq.kernels.triton.weights import Weights

MAX_NORM = 32768
"""Widest row that the norm keeps in registers; torch computes wider ones."""


class TritonKernels:
    """The operations of `mixq.kernels.dispatch.Kernels` on a GPU.

    Args:
        device: a CUDA GPU; the CPU in Triton's interpreter.
        inline_asm: dp4a and byte permutes for the integer products. The same integers, but the interpreter cannot
            run it.

    Attributes:
        dtype: of the factors for many rows: float16 before compute capability 8.0.
    """

    exact = False
    uses_torch_threads = False

    def __init__(self, device: torch.device, *, inline_asm: bool = False) -> None:
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
        self.name = "triton"
        self.device = device
        self.inline_asm = inline_asm
        self.dtype = torch.bfloat16 if capability >= (8, 0) else torch.float16
        self._precision = "tf32x3" if capability >= (8, 0) else "ieee"
        self._flash = device.type == "cuda" and capability >= (8, 0)
        self._weights = Weights(device)
        self._nf4 = Nf4(device)
        self._normed: tuple[Tensor, Prepared] | None = None

    def busy_ns(self) -> int:
        """Return 0: the accelerator measures the GPU's time."""
        return 0

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        matrix = self._weights.matrix(weight)
        if matrix is None:
            return prefill.multiply(x.to(self.dtype), self._dense(weight))
        if x.shape[0] <= DECODE_ROWS:
            return linears.linears(self._prepared(x), x.shape[0], [matrix], asm=self.inline_asm)[0]
        if isinstance(weight, Tensor):
            return prefill.multiply(x.to(self.dtype), weight.to(self.dtype))
        return prefill.packed_linear(x, matrix, self.dtype)

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
        """Return [x @ w.T for w in weights]; few rows in one launch for three weights."""
        matrices = [matrix for matrix in map(self._weights.matrix, weights) if matrix is not None]
        if x.shape[0] > DECODE_ROWS or len(matrices) < len(weights):
            return [self.linear(x, weight) for weight in weights]
        return linears.linears(self._prepared(x), x.shape[0], matrices, asm=self.inline_asm)

    def router_logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return router.route(x.contiguous(), weight.contiguous(), 0)[0]

    def route(self, x: Tensor, weight: Tensor, A: int) -> tuple[Tensor, Tensor]:
        """Return weights and ids [T, A] of the A most likely experts; the weights sum to one. One launch."""
        _, weights, ids = router.route(x.contiguous(), weight.contiguous(), A)
        return weights, ids

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As `reference.rms_norm`; few rows are prepared for the following products in the same launch."""
        if x.shape[1] > MAX_NORM:
            return reference.rms_norm(x, weight, eps)
        out, prepared = activations.rms_norm(x.contiguous(), weight, eps, prepared=x.shape[0] <= DECODE_ROWS)
        self._normed = None if prepared is None else (out, prepared)
        return out

    def experts(self, x: Tensor, experts_: Sequence[Expert], topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """As `reference.experts`; the list's table of addresses is created on first use."""
        ids, weights = topk_ids.contiguous(), topk_weights.contiguous()
        if x.shape[0] <= DECODE_ROWS and (table := self._weights.slots(experts_)) is not None:
            return experts.experts(self._prepared(x), x.shape[0], table, ids, weights, asm=self.inline_asm)
        return prefill.experts(x, experts_, ids, weights, self.linear)

    def rotary_append(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, kv: KVLayer, position: int | Tensor
    ) -> Tensor:
        """As `reference.rotary_append`; with `position` on the device, cos and sin are those of all positions."""
        if not attention.takes(kv) and isinstance(position, int):
            return reference.rotary_append(q, k, v, cos, sin, kv, position)
        q, k, v, cos, sin = (x.contiguous() for x in (q, k, v, cos, sin))
        return attention.rotary_append(q, k, v, cos, sin, kv, position)

    def attention_rows(self, q: Tensor, kv: KVLayer, position: int | Tensor, window: int | None) -> Tensor:
        if not attention.takes(kv) and isinstance(position, int):
            return reference.attention_rows(q, kv, position, window)
        return attention.attention_rows(q.contiguous(), kv, position, window, self._precision)

    def attention_prefill(self, q: Tensor, kv: KVLayer, position: int, window: int | None) -> Tensor:
        return prefill.attention(q, kv, position, window, self.dtype, flash=self._flash)

    def step(self, network: NetworkWeights, rows: Sequence[Rows], *, all_logits: bool) -> tuple[Tensor, Tensor] | None:
        """Return None: on a GPU, a captured graph starts the separate kernels."""
        return None

    def _prepared(self, x: Tensor) -> Prepared:
        """Return x prepared; the last normed rows already are."""
        if self._normed is not None and self._normed[0] is x:
            return self._normed[1]
        return activations.prepare(x.contiguous())

    def _dense(self, weight: Weight) -> Tensor:
        if isinstance(weight, PackedLinear):
            if weight.scheme.name == "nf4":
                return self._nf4.dense(weight, self.dtype)
            return weight.dequantize().to(self.dtype)
        return weight.to(self.dtype)
