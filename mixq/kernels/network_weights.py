"""The weights of a whole network: what kernels need to compute a decode step in one call.

Contract: weights and numbers only; `mixq.model` defines what is computed with them.

Axes: A active experts, D hidden, E experts, H heads, KV kv heads, C head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.reference import Expert, Weight


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer."""

    input_layernorm: Tensor  # [D]
    qkv_proj: Sequence[Weight]  # [H * C, D], and twice [KV * C, D]
    o_proj: Weight  # [D, H * C]
    post_attention_layernorm: Tensor  # [D]
    gate: Tensor | None  # the router [E, D]; None in a dense model
    experts: Sequence[Expert]  # E; in a dense model the feed-forward block


@dataclass(frozen=True, slots=True, eq=False)
class NetworkWeights:
    """All layers, what comes before and after them, and the numbers that belong to them."""

    embed_tokens: Tensor  # [V, D]
    layers: Sequence[LayerWeights]
    norm: Tensor  # [D]
    lm_head: Weight  # [V, D]
    cos: Tensor  # float32 [positions, C/2], of all positions
    sin: Tensor
    num_experts_per_tok: int  # A; 1 in a dense model
    window: int | None  # positions that a token sees, itself included; None means all
    eps: float  # of the norms


class Rows(NamedTuple):
    """The next tokens of one sequence, from `position` of its cache on."""

    kv: Sequence[KVLayer]  # of each layer
    position: int
    token_ids: Sequence[int]
