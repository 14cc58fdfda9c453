"""The tensors of a model: names, shapes and roles, from its config.

Contract: `parameters(config)` lists every tensor of a checkpoint in Hugging Face's (transformers 4) naming, layer by
layer. Readers check files against it, the quantizer chooses schemes by role, the network requests its weights by
these names. Names as in the public Mixtral, Mistral and Llama 2 checkpoints; an expert's w1 is gate, w2 down, w3 up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from mixq.config import ModelConfig

LINEAR_ROLES = ("q", "k", "v", "o", "expert", "mlp", "lm_head")
"""Roles that can be quantized. Router and norms are never quantized; the embedding is looked up, not multiplied."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a checkpoint.

    `layer` is None outside the layers, `expert` outside experts. `module` is the name of
    the linear layer, Embedding or norm that owns it: `name` without ".weight".
    """

    module: str
    shape: tuple[int, ...]
    role: str
    layer: int | None = None
    expert: int | None = None

    @property
    def name(self) -> str:
        return f"{self.module}.weight"

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def quantizable(self) -> bool:
        return self.role in LINEAR_ROLES


def bytes_read(parameter: Parameter, config: ModelConfig, nbytes: int) -> int:
    """Return how many bytes of a tensor one token reads: of experts and embedding only the part that is used."""
    if parameter.role == "expert":
        return nbytes * config.num_experts_per_tok // config.num_local_experts
    if parameter.role == "embedding" and not config.tie_word_embeddings:
        return nbytes // config.vocab_size
    return nbytes


def parameters(config: ModelConfig) -> Iterator[Parameter]:
    """Yield every tensor of the model: embedding, the layers in order, final norm, head."""
    yield Parameter("model.embed_tokens", (config.vocab_size, config.hidden_size), "embedding")
    for layer in range(config.num_hidden_layers):
        yield from layer_parameters(config, layer)
    yield Parameter("model.norm", (config.hidden_size,), "norm")
    if not config.tie_word_embeddings:
        yield Parameter("lm_head", (config.vocab_size, config.hidden_size), "lm_head")


def layer_parameters(config: ModelConfig, layer: int) -> Iterator[Parameter]:
    """Yield the tensors of one decoder layer."""
    D, F = config.hidden_size, config.intermediate_size
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    prefix = f"model.layers.{layer}"
    yield Parameter(f"{prefix}.input_layernorm", (D,), "norm", layer)
    yield Parameter(f"{prefix}.self_attn.q_proj", (q_size, D), "q", layer)
    yield Parameter(f"{prefix}.self_attn.k_proj", (kv_size, D), "k", layer)
    yield Parameter(f"{prefix}.self_attn.v_proj", (kv_size, D), "v", layer)
    yield Parameter(f"{prefix}.self_attn.o_proj", (D, q_size), "o", layer)
    yield Parameter(f"{prefix}.post_attention_layernorm", (D,), "norm", layer)
    if not config.is_moe:
        yield Parameter(f"{prefix}.mlp.gate_proj", (F, D), "mlp", layer)
        yield Parameter(f"{prefix}.mlp.up_proj", (F, D), "mlp", layer)
        yield Parameter(f"{prefix}.mlp.down_proj", (D, F), "mlp", layer)
        return
    yield Parameter(f"{prefix}.block_sparse_moe.gate", (config.num_local_experts, D), "router", layer)
    for expert in range(config.num_local_experts):
        experts = f"{prefix}.block_sparse_moe.experts.{expert}"
        yield Parameter(f"{experts}.w1", (F, D), "expert", layer, expert)
        yield Parameter(f"{experts}.w2", (D, F), "expert", layer, expert)
        yield Parameter(f"{experts}.w3", (F, D), "expert", layer, expert)
