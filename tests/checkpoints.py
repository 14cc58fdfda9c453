"""Tiny random checkpoints in Hugging Face's layout, as tests need them.

The weights are the same numbers in every dtype: bfloat16 values that float16 holds exactly too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.architecture import parameters
from mixq.models.presets import PRESETS

SMALL_MIXTRAL = PRESETS["mixtral-8x7b"] | {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 256,
}
"""Three layers with experts of 0.4 MB in nl4: a hundred pages of 4 KiB each."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def write_tiny_mixtral(
    path: Path,
    *,
    hidden: int = 128,
    ffn: int = 256,
    layers: int = 2,
    experts: int = 4,
    vocab: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "per-expert",
    shards: int = 1,
    seed: int = 0,
    rope: str = "top",
    tokenizer: bool = True,
    **config: Any,
) -> dict[str, Tensor]:
    """Write a random Mixtral and return its tensors by per-expert name.

    Args:
        layout: `per-expert` (transformers 4) or `fused` (transformers 5) names.
        shards: how many safetensors files; with one there is no index.
        rope: `top`, or `nested` for rope_theta inside rope_parameters.
        tokenizer: write a (meaningless) tokenizer.model and tokenizer_config.json too.
        config: further or other fields of config.json.
    """
    moe = {"num_local_experts": experts, "num_experts_per_tok": 2, "sliding_window": None, "router_jitter_noise": 0.0}
    raw = _config("MixtralForCausalLM", "mixtral", hidden, ffn, layers, vocab, dtype, rope) | moe | config
    return _write(path, raw, dtype, layout, shards, seed, tokenizer)


def write_tiny_mistral(
    path: Path,
    *,
    hidden: int = 128,
    ffn: int = 256,
    layers: int = 2,
    vocab: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
    seed: int = 0,
    rope: str = "top",
    tokenizer: bool = True,
    architecture: str = "MistralForCausalLM",
    **config: Any,
) -> dict[str, Tensor]:
    """Write a random dense model, Mistral's or (by `architecture`) Llama's, and return its tensors."""
    kind = {"MistralForCausalLM": "mistral", "LlamaForCausalLM": "llama"}[architecture]
    raw = _config(architecture, kind, hidden, ffn, layers, vocab, dtype, rope) | config
    return _write(path, raw, dtype, "per-expert", shards, seed, tokenizer)


def write_tiny_llama(path: Path, **options: Any) -> dict[str, Tensor]:
    """Write a random Llama; options as for `write_tiny_mistral`."""
    return write_tiny_mistral(path, architecture="LlamaForCausalLM", **options)


def _config(
    architecture: str, kind: str, hidden: int, ffn: int, layers: int, vocab: int, dtype: torch.dtype, rope: str
) -> dict[str, Any]:
    theta = {"rope_theta": 1e6} if rope == "top" else {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.02,
        "use_cache": True,
        **theta,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _write(
    path: Path, raw: dict[str, Any], dtype: torch.dtype, layout: str, shards: int, seed: int, tokenizer: bool
) -> dict[str, Tensor]:
    path.mkdir(parents=True, exist_ok=True)
    print(f"{raw['model_type']} checkpoint of seed {seed}")
    config = ModelConfig.from_dict(raw)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for parameter in parameters(config):
        values = torch.randn(parameter.shape, generator=generator)
        values = 1 + 0.1 * values if parameter.role == "norm" else values * parameter.shape[-1] ** -0.5
        values = values.to(torch.bfloat16).float()
        tensors[parameter.name] = torch.where(values.abs() < 2.0**-14, 0.0, values).to(dtype)
    stored = _fuse(tensors, config) if layout == "fused" else tensors
    _save(path, stored, shards)
    (path / "config.json").write_text(json.dumps(raw, indent=2))
    (path / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    if tokenizer:
        (path / "tokenizer.model").write_bytes(b"not a real one")
        (path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    return tensors


def _fuse(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors under transformers 5's names: each layer's experts in two tensors."""
    stored = {name: tensor for name, tensor in tensors.items() if "block_sparse_moe" not in name}
    for layer in range(config.num_hidden_layers):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        matrices = {
            w: [tensors[f"{old}.experts.{e}.{w}.weight"] for e in range(config.num_local_experts)]
            for w in ("w1", "w2", "w3")
        }
        pairs = zip(matrices["w1"], matrices["w3"], strict=True)
        stored[f"{new}.experts.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        stored[f"{new}.experts.down_proj"] = torch.stack(matrices["w2"])
        stored[f"{new}.gate.weight"] = tensors[f"{old}.gate.weight"]
    return stored


def _save(path: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]  # a layer's tensors are spread over all files
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
