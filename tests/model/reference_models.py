"""Tiny random models of each architecture, made and saved by transformers: what parity is measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

VOCAB = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,  # wide enough for the router to be decided and attention to be peaked
}
THETA = {"rope_type": "default", "rope_theta": 1e6}
MODELS: dict[str, Any] = {
    "Mixtral 8x7B-like (8 experts, top 2)": transformers.MixtralConfig(
        **SHAPE, num_local_experts=8, num_experts_per_tok=2, rope_parameters=THETA
    ),
    "Mixtral 8x22B-like (6 heads a kv head, top 3)": transformers.MixtralConfig(
        **{**SHAPE, "num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 96},
        num_local_experts=4,
        num_experts_per_tok=3,
        rope_parameters=THETA,
    ),
    "Mistral, sliding window": transformers.MistralConfig(**SHAPE, sliding_window=16),
    "Mistral, own head_dim": transformers.MistralConfig(**SHAPE, head_dim=32, sliding_window=None),
    "Llama 2": transformers.LlamaConfig(**SHAPE),
    "Llama 2, tied embedding": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
}


class ReferenceModel:
    """A random model of transformers, saved to `path`; the seed is printed."""

    def __init__(self, name: str, path: Path, seed: int = 7) -> None:
        print(f"seed {seed}")
        torch.manual_seed(seed)
        self.path = path
        self._model = transformers.AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.float32).eval()
        for parameter_name, parameter in self._model.named_parameters():
            if "norm" in parameter_name:
                parameter.data.uniform_(0.5, 1.5)
        self._model.save_pretrained(path)

    def logits(self, ids: list[int]) -> Tensor:
        """Return float32 logits [len(ids), V]."""
        with torch.inference_mode():
            logits: Tensor = self._model(torch.tensor([ids])).logits[0]
            return logits.float()


def random_ids(count: int, seed: int) -> list[int]:
    """Return `count` token ids; the seed is printed."""
    print(f"seed {seed}")
    ids: list[int] = torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def relative_l2(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / |b|."""
    return float((a - b).norm() / b.norm())
