"""The shapes of Mixtral and its relatives, as in their published config.json files.

Contract: `PRESETS[name]` is the content of a config.json without weights: for plans, size tables and synthetic benches.
"""

from __future__ import annotations

from typing import Any

_SHARED: dict[str, Any] = {
    "hidden_act": "silu",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MISTRAL_7B: dict[str, Any] = {  # v0.3; v0.1 had 32000 words, a window of 4096 and a rope_theta of 1e4
    **_SHARED,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "vocab_size": 32768,
}
_MIXTRAL_8X7B: dict[str, Any] = {
    **_MISTRAL_7B,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}

PRESETS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": _MIXTRAL_8X7B,
    "mixtral-8x22b": {
        **_MIXTRAL_8X7B,
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_hidden_layers": 56,
        "num_attention_heads": 48,
        "max_position_embeddings": 65536,
    },
    "mistral-7b": _MISTRAL_7B,
    "llama-2-70b": {
        **_SHARED,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "max_position_embeddings": 4096,
        "rope_theta": 1e4,
        "torch_dtype": "float16",
    },
}
