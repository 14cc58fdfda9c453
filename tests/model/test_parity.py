"""Logits equal transformers' on tiny random models: float32, prefill and token-by-token decode alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import mixq
from mixq.generate import PREFILL_CHUNK

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,  # wide enough for the router to be decided and attention to be peaked
}
MODELS = {
    "mixtral": transformers.MixtralConfig(
        **SHAPE, num_local_experts=8, num_experts_per_tok=2, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    "mixtral-8x22b-like": transformers.MixtralConfig(
        **{**SHAPE, "num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 96},
        num_local_experts=4,
        num_experts_per_tok=3,
    ),
    "mistral-sliding-window": transformers.MistralConfig(**SHAPE, sliding_window=16),
    "mistral-head-dim": transformers.MistralConfig(**SHAPE, head_dim=32, sliding_window=None),
    "llama": transformers.LlamaConfig(**SHAPE),
    "llama-tied": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module", params=list(MODELS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    torch.manual_seed(7)
    print("seed 7")
    model = transformers.AutoModelForCausalLM.from_config(MODELS[request.param], dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return path, model.eval()


def logits_of(model: object, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()  # type: ignore[operator]


def test_prefill_equals_transformers(reference: tuple[Path, object]) -> None:
    path, model = reference
    ids = torch.randint(0, 320, (41,), generator=torch.Generator().manual_seed(1)).tolist()
    assert relative(mixq.load(path, exact=True).forward(ids), logits_of(model, ids)) < 1e-4


def test_decode_token_by_token_equals_transformers(reference: tuple[Path, object]) -> None:
    path, model = reference
    ids = torch.randint(0, 320, (41,), generator=torch.Generator().manual_seed(2)).tolist()
    ours = mixq.load(path, exact=True)
    cache = ours.new_kv_cache()
    steps = [ours.forward(ids[:20], kv_cache=cache), *(ours.forward([i], kv_cache=cache) for i in ids[20:])]
    assert relative(torch.cat(steps), logits_of(model, ids)) < 1e-4


def test_prompt_longer_than_a_prefill_chunk_equals_transformers(reference: tuple[Path, object]) -> None:
    path, model = reference
    ids = torch.randint(0, 320, (PREFILL_CHUNK + 77,), generator=torch.Generator().manual_seed(3)).tolist()
    assert relative(mixq.load(path, exact=True).forward(ids), logits_of(model, ids)) < 1e-4


def test_bf16_arithmetic_stays_near_float32(reference: tuple[Path, object]) -> None:
    """Without `exact`: bf16 matrices and KV cache. A wrong router choice here and there is what bf16 costs."""
    path, model = reference
    ids = torch.randint(0, 320, (41,), generator=torch.Generator().manual_seed(4)).tolist()
    assert relative(mixq.load(path).forward(ids), logits_of(model, ids)) < 0.15
    assert relative(mixq.load(path, kv="int8").forward(ids), logits_of(model, ids)) < 0.15
