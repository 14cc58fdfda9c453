"""Chooses the kernels, once when a model is loaded.

Contract: `Kernels` are the operations that the network uses; every implementation returns what `mixq.kernels.reference`
returns, within rounding. `choose` takes the native kernels if the library was built and the CPU supports them, else
torch's with one warning; `mixq doctor` shows the reason. `exact` is always torch, in float32.

Axes: T tokens of S sequences, N out, K in, D hidden, E experts, A active experts, H heads, KV kv heads, C head size,
L layers, V vocabulary.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mixq.kernels import native_library, reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.network_weights import NetworkWeights, Rows
from mixq.kernels.reference import Expert, Weight


class Kernels(Protocol):
    """The operations of the network; shapes and arithmetic as in `mixq.kernels.reference`."""

    name: str  # for users
    exact: bool  # float32 throughout
    device: torch.device  # of the tensors that they take and return
    # torch computes the large products. Otherwise torch should have one thread, since waiting threads spin and take the
    # cores from the native kernels.
    uses_torch_threads: bool

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x [T, K], weight [N, K] -> [T, N]."""

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
        """x [T, K] -> [T, N] for each of the weights, in one call."""

    def router_logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [T, D], weight [E, D] -> float32 [T, E]."""

    def route(self, x: Tensor, weight: Tensor, A: int) -> tuple[Tensor, Tensor]:
        """x [T, D], weight [E, D] -> weights float32 and ids int64 [T, A] of the A most likely experts, of
        equally likely ones the lower number first."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, D] -> [T, D]."""

    def experts(self, x: Tensor, experts: Sequence[Expert], topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """x [T, D], ids and weights [T, A] -> [T, D]; experts with a negative id are computed elsewhere and add
        nothing."""

    def rotary_append(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, kv: KVLayer, position: int | Tensor
    ) -> Tensor:
        """Rotated q [T, H, C]; rotated k and v [T, KV, C] are written to the cache. q is overwritten.

        `position` may be an integer [1] on the device, read when the kernel runs; cos and sin are then those of all
        positions, not of the rows'.
        """

    def attention_rows(self, q: Tensor, kv: KVLayer, position: int | Tensor, window: int | None) -> Tensor:
        """q [T, H, C] -> [T, H, C], each row by itself: decode. `position` as for `rotary_append`."""

    def attention_prefill(self, q: Tensor, kv: KVLayer, position: int, window: int | None) -> Tensor:
        """q [T, H, C] -> [T, H, C], many rows."""

    def step(self, network: NetworkWeights, rows: Sequence[Rows], *, all_logits: bool) -> tuple[Tensor, Tensor] | None:
        """The network's pass over the next tokens of S sequences, T in all, in one call.

        At most `reference.DECODE_ROWS` tokens. Returns the logits of each sequence's last token [S, V], or of all
        [T, V], and the chosen experts [L, T, A] of the layers: bit-identical to the separate operations. None: these
        kernels have no such call.
        """

    def busy_ns(self) -> int:
        """Nanoseconds spent in these kernels so far; 0 if they are not counted."""


class ReferenceKernels:
    """torch's kernels: the reference, and the fallback without native kernels."""

    def __init__(self, *, exact: bool = False) -> None:
        self.exact = exact
        self.name = "reference"
        self.device = torch.device("cpu")
        self.uses_torch_threads = True

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        return reference.linear(x, weight, exact=self.exact)

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
        return [reference.linear(x, weight, exact=self.exact) for weight in weights]

    def router_logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return reference.router_logits(x, weight)

    def route(self, x: Tensor, weight: Tensor, A: int) -> tuple[Tensor, Tensor]:
        return reference.route(self.router_logits(x, weight), A)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return reference.rms_norm(x, weight, eps)

    def experts(self, x: Tensor, experts: Sequence[Expert], topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        return reference.experts(x, experts, topk_ids, topk_weights, self.linear)

    def rotary_append(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, kv: KVLayer, position: int | Tensor
    ) -> Tensor:
        return reference.rotary_append(q, k, v, *reference.angles(cos, sin, position, len(q)), kv, int(position))

    def attention_rows(self, q: Tensor, kv: KVLayer, position: int | Tensor, window: int | None) -> Tensor:
        return reference.attention_rows(q, kv, int(position), window)

    def attention_prefill(self, q: Tensor, kv: KVLayer, position: int, window: int | None) -> Tensor:
        return reference.attention_prefill(q, kv, position, window, exact=self.exact)

    def step(self, network: NetworkWeights, rows: Sequence[Rows], *, all_logits: bool) -> tuple[Tensor, Tensor] | None:
        return None

    def busy_ns(self) -> int:
        return 0


def choose(*, threads: int, exact: bool = False) -> Kernels:
    """Return the kernels for this computer.

    Args:
        threads: of the native kernels.
        exact: float32 throughout, with torch's kernels.

    Raises:
        UsageError: MIXQ_CPU_ISA names an instruction set that is unknown, or that this CPU lacks.
    """
    if exact:
        return ReferenceKernels(exact=True)
    reason = native_library.unavailable_reason()
    if reason is None:
        return NativeKernels(threads)
    _warn_once(reason)
    return ReferenceKernels()


@functools.cache
def _warn_once(reason: str) -> None:
    print(f"mixq: slow torch kernels are used: {reason.rstrip('.')}. `mixq doctor` has details.", file=sys.stderr)
