"""Converts a GGUF file's metadata to a config.json.

Contract: reads the architecture "llama", which Mixtral, Mistral and Llama share; keys that would change the
network and are not supported are refused by name. Numbers that llama.cpp stores as float32 become the shortest decimal
of the same float32, as in the original config.json.

Source: llama.cpp's gguf-py/gguf/constants.py for the keys, LLM_ARCH_LLAMA in src/llama-model.cpp for their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, is_integer, printable

ARCHITECTURE = "llama"
ROPE_THETA = {"MixtralForCausalLM": 1e6, "LlamaForCausalLM": 1e4}
"""Defaults for llama.rope.freq_base: the released models were trained with them."""


def config_of(metadata: Mapping[str, Any], vocab_size: int, tied: bool, dtype: str) -> dict[str, Any]:
    """Return the config.json for the metadata.

    Args:
        metadata: of the file, or of the first of its parts.
        vocab_size: rows of the embedding.
        tied: whether the embedding is the lm_head too.
        dtype: of the weights, as config.json names it.

    Raises:
        ModelFileError: another architecture, a key that is missing or out of range, or scaled rotary embeddings.
    """
    fields = _Fields(metadata)
    found = metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise ModelFileError(
            f"the architecture is {printable(repr(found))}; mixq reads {ARCHITECTURE!r}.",
            hint="Use a GGUF file of Mixtral, Mistral or Llama; they have this architecture: llama.",
        )
    experts = fields.whole("expert_count", 0)
    architecture = "MixtralForCausalLM" if experts else "LlamaForCausalLM"
    heads, hidden = fields.whole("attention.head_count", least=1), fields.whole("embedding_length")
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "mixtral" if experts else "llama",
        "hidden_size": hidden,
        "intermediate_size": fields.whole("feed_forward_length"),
        "num_hidden_layers": fields.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole("attention.head_count_kv", heads),
        "head_dim": fields.head_dim(hidden // heads),
        "vocab_size": vocab_size,
        "max_position_embeddings": fields.whole("context_length"),
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.real("rope.freq_base", ROPE_THETA[architecture]),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": fields.token("bos", 1),
        "eos_token_id": fields.token("eos", 2),
        "torch_dtype": dtype,
    }
    if experts:
        config["num_local_experts"] = experts
        config["num_experts_per_tok"] = fields.whole("expert_used_count")
        config["sliding_window"] = None
    fields.refuse_scaling()
    try:
        ModelConfig.from_dict(config)
    except ModelFileError as error:
        raise ModelFileError(error.message.removeprefix("config.json: "), hint=error.hint) from error
    return config


class _Fields:
    """The keys of the architecture, by what follows "llama."."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata

    def whole(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        value = self.metadata.get(f"{ARCHITECTURE}.{key}", default)
        if not is_integer(value, least):
            raise self._bad(key, value, f"a whole number of at least {least}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{ARCHITECTURE}.{key}", default)
        if not isinstance(value, float):
            raise self._bad(key, value, "a number")
        return float(str(np.float32(value)))

    def token(self, which: str, default: int) -> int:
        value = self.metadata.get(f"tokenizer.ggml.{which}_token_id", default)
        return value if isinstance(value, int) else default

    def head_dim(self, default: int) -> int:
        """Return the size of a head, which keys, values and rotary embedding must share."""
        keys = self.whole("attention.key_length", default)
        values = self.whole("attention.value_length", default)
        rotated = self.whole("rope.dimension_count", keys)
        if not keys == values == rotated:
            raise ModelFileError(
                f"a head has keys of size {keys}, values of size {values}, and rotary embedding on {rotated}; mixq "
                "computes only models where the three are equal."
            )
        return keys

    def refuse_scaling(self) -> None:
        kind = self.metadata.get(f"{ARCHITECTURE}.rope.scaling.type", "linear")
        if kind == "none":
            return
        for key in ("rope.scaling.factor", "rope.scale_linear"):
            factor = self.metadata.get(f"{ARCHITECTURE}.{key}", 1.0)
            if factor not in (0.0, 1.0):
                raise self._bad(key, factor, "1: scaled rotary embeddings are not supported")
        if kind != "linear":
            raise self._bad("rope.scaling.type", kind, "none: scaled rotary embeddings are not supported")

    def _bad(self, key: str, value: object, allowed: str) -> ModelFileError:
        if value is None:
            return ModelFileError(f"the metadata have no {ARCHITECTURE}.{key}.")
        return ModelFileError(f"{ARCHITECTURE}.{key} is {printable(repr(value))}; it must be {allowed}.")
