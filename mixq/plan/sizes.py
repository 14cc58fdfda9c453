"""How many bytes a model takes, by what they are for: of a folder as it is, or of a mix that is not there yet.

Contract: arithmetic over shapes, or over the headers of an open folder; no weight is read. Bytes as stored, which is as
computed (DESIGN section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mixq.config import ModelConfig
from mixq.experts.cost import ModelCost
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.mix import Mix
from mixq.formats.packed import packed_bytes
from mixq.formats.weights import Weights
from mixq.model.kv_cache import KVCache

KV_DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Bytes of a model.

    Attributes:
        name: for tables.
        format: nl4, w4, w8, nf4, bf16 or what a folder's mix is called.
        config: its shape.
        experts: of all experts; of a dense model, its feed-forward blocks are trunk.
        trunk: of all layers besides their experts: attention, norms, routers.
        head, embedding: of each; a tied embedding is the head.
    """

    name: str
    format: str
    config: ModelConfig
    experts: int
    trunk: int
    head: int
    embedding: int

    @classmethod
    def of_mix(cls, name: str, format: str, config: ModelConfig, mix: Mix | None) -> ModelSizes:
        """Return the sizes of weights in a mix; None leaves everything in bfloat16."""

        def stored(parameter: Parameter) -> int:
            scheme = None if mix is None else mix.scheme_of(parameter)
            if scheme is None:
                return 2 * parameter.numel
            N, K = parameter.shape
            return packed_bytes(scheme, (N, K))

        return cls._sum(name, format, config, {p: stored(p) for p in parameters(config)})

    @classmethod
    def of_weights(cls, weights: Weights, format: str = "its format") -> ModelSizes:
        """Return the sizes of an open folder, or of made-up weights."""
        stored = {
            p: (weights.linear(p.module) if p.quantizable else weights.tensor(p.name)).nbytes
            for p in parameters(weights.config)
        }
        return cls._sum(weights.path.name, format, weights.config, stored)

    @classmethod
    def _sum(cls, name: str, format: str, config: ModelConfig, stored: dict[Parameter, int]) -> ModelSizes:
        def total(*roles: str) -> int:
            return sum(nbytes for parameter, nbytes in stored.items() if parameter.role in roles)

        embedding = total("embedding")
        head = embedding if config.tie_word_embeddings else total("lm_head")
        rest = sum(stored.values()) - total("expert", "embedding", "lm_head")
        return cls(name, format, config, total("expert"), rest, head, embedding)

    @property
    def total(self) -> int:
        """Bytes of the folder's weights."""
        return self.experts + self.trunk + self.embedding + (0 if self.config.tie_word_embeddings else self.head)

    @property
    def expert(self) -> int:
        """Bytes of one expert, 0 for a dense model."""
        count = self.config.num_hidden_layers * self.config.num_local_experts
        return self.experts // count if self.config.is_moe else 0

    @property
    def token(self) -> int:
        """Bytes of weights that a decode step reads."""
        config = self.config
        active = self.experts * config.num_experts_per_tok // config.num_local_experts if config.is_moe else 0
        return active + self.trunk + self.head

    def kv_position(self, kv: str) -> int:
        """Return the bytes that one position takes in the KV cache of all layers."""
        return KVCache.bytes_per_position(self.config, KV_DTYPES[kv])

    def cost(self, kv: str = "bf16") -> ModelCost:
        """Return what scheduler and replay go by; a dense model is one expert that every token uses."""
        config = self.config
        layers = config.num_hidden_layers
        return ModelCost.of(
            config,
            expert_bytes=max(self.expert, 1),
            trunk_bytes=self.trunk // layers,
            head_bytes=self.head,
            kv_bytes=self.kv_position(kv) // layers,
        )
