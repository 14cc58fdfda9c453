"""Bytes and operations of a model: of an open folder, or for a format to which it could be quantized.

Contract: computed from shapes, or from the headers of an open folder; no weight is read. Kernels use the bytes as
stored, so sizes on disk and in memory are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mixq.config import ModelConfig
from mixq.experts.cost import ModelCost
from mixq.formats.architecture import Parameter, bytes_read, parameters
from mixq.formats.mix import AS_IT_IS, FORMATS, Mix
from mixq.formats.packed import packed_bytes
from mixq.formats.weights import Weights
from mixq.model.kv_cache import KVCache

KV_DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Bytes of a model."""

    name: str  # for tables
    format: str  # nl4, w4, w8, nf4, bf16 or the name of a folder's mix
    config: ModelConfig  # its shape
    experts: int  # of all experts; in a dense model, the feed-forward blocks belong to the trunk
    trunk: int  # of all layers without experts: attention, norms, routers
    # head, embedding: of each; tied embeddings are counted as head
    head: int
    embedding: int
    token: int  # weights that a decode step reads

    @classmethod
    def of_format(cls, name: str, format: str, config: ModelConfig) -> ModelSizes:
        """Return the sizes of a model in a format or mix; see `resolve_mix`."""
        mix = resolve_mix(config, format)

        def stored(parameter: Parameter) -> int:
            scheme = None if mix is None else mix.scheme_of(parameter)
            if scheme is None:
                return 2 * parameter.numel
            N, K = parameter.shape
            return packed_bytes(scheme, (N, K))

        return cls._sum(name, format, config, {p: stored(p) for p in parameters(config)})

    @classmethod
    def of_weights(cls, weights: Weights, format: str = "its format") -> ModelSizes:
        """Return the sizes of an open folder, or of synthetic weights."""
        stored = {
            p: (weights.linear(p.module) if p.quantizable else weights.tensor(p.name)).nbytes
            for p in parameters(weights.config)
        }
        return cls._sum(weights.path.name, format, weights.config, stored)

    @classmethod
    def _sum(cls, name: str, format: str, config: ModelConfig, stored: Mapping[Parameter, int]) -> ModelSizes:
        def total(*roles: str) -> int:
            return sum(nbytes for parameter, nbytes in stored.items() if parameter.role in roles)

        embedding = total("embedding")
        head = embedding if config.tie_word_embeddings else total("lm_head")
        rest = sum(stored.values()) - total("expert", "embedding", "lm_head")
        token = sum(bytes_read(parameter, config, nbytes) for parameter, nbytes in stored.items())
        return cls(name, format, config, total("expert"), rest, head, embedding, token)

    @property
    def total(self) -> int:
        """Bytes of the folder's weights."""
        return self.experts + self.trunk + self.embedding + (0 if self.config.tie_word_embeddings else self.head)

    @property
    def expert_count(self) -> int:
        """Experts of all layers, 0 for a dense model."""
        return self.config.num_hidden_layers * self.config.num_local_experts if self.config.is_moe else 0

    @property
    def expert(self) -> int:
        """Bytes of one expert, 0 for a dense model."""
        return self.experts // self.expert_count if self.expert_count else 0

    def kv_position(self, kv: str) -> int:
        """Return the bytes of one position in the KV cache of all layers."""
        return KVCache.bytes_per_position(self.config, KV_DTYPES[kv])

    def cost(self, kv: str = "bf16") -> ModelCost:
        """Return the bytes for scheduler and replay; a dense model has one expert per layer."""
        config, layers = self.config, self.config.num_hidden_layers
        return ModelCost(
            layers=layers,
            experts=config.num_local_experts,
            active=config.num_experts_per_tok,
            expert_bytes=max(self.expert, 1),
            trunk_bytes=self.trunk // layers,
            head_bytes=self.head,
            kv_bytes=self.kv_position(kv) // layers,
            expert_flops=6 * config.hidden_size * config.intermediate_size,
        )


def resolve_mix(config: ModelConfig, text: str) -> Mix | None:
    """Return the mix for a text; None for unquantized weights.

    Args:
        text: `default`, a format (`nl4`, `w4`, `w8`, `nf4`) for its default mix, `bf16` for no quantization, `all-nl4`,
            or pairs such as `experts=nl4:16,o=w8`.

    Raises:
        UsageError: an unknown name, or a mix that does not fit the model.
    """
    if text == AS_IT_IS:
        return None
    if text in ("default", *FORMATS):
        return Mix.resolve(config, format="nl4" if text == "default" else text)
    return Mix.resolve(config, mix=text)


def positions_seen(config: ModelConfig, tokens: int, depth: int = 0) -> int:
    """Return the total number of positions that `tokens` tokens after `depth` others attend to, including
    themselves."""
    window = config.sliding_window or depth + tokens
    return sum(min(position, window) for position in range(depth + 1, depth + tokens + 1))


def prompt_operations(config: ModelConfig, tokens: int, depth: int = 0) -> float:
    """Return the floating point operations of a prompt: two for each weight used and token, and attention.

    The head runs once, for the last token; scores and weighted values cost two operations each for every head, head
    dimension and position seen.
    """
    used = sum(
        bytes_read(parameter, config, parameter.numel)
        for parameter in parameters(config)
        if parameter.layer is not None and parameter.role != "norm"
    )
    head = config.vocab_size * config.hidden_size
    per_position = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2.0 * (used * tokens + head) + per_position * positions_seen(config, tokens, depth)
