"""Tiny checkpoints in the forms of Mistral AI's own releases, made from Hugging Face's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mixq.config import ModelConfig

_NAMES = (
    ("model.embed_tokens", "tok_embeddings"),
    ("lm_head", "output"),
    ("model.norm", "norm"),
    ("model.layers", "layers"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attention.wq"),
    ("self_attn.k_proj", "attention.wk"),
    ("self_attn.v_proj", "attention.wv"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("block_sparse_moe", "feed_forward"),
)


def in_pairs(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of q or k as Mistral's rotary embedding has them: of the first half, of the second, and so on."""
    d = len(weight) // heads
    order = [head * d + half * (d // 2) + i for head in range(heads) for i in range(d // 2) for half in (0, 1)]
    return weight[order]


def write_release(
    path: Path, tensors: dict[str, Tensor], raw_config: dict[str, Any], *, pickled: bool = False, **params: Any
) -> None:
    """Write params.json and consolidated.safetensors, or consolidated.00.pth."""
    path.mkdir(parents=True)
    stored = _renamed(tensors, raw_config)
    if pickled:
        torch.save(stored, path / "consolidated.00.pth")
    else:
        save_file(stored, path / "consolidated.safetensors")
    config = ModelConfig.from_dict(raw_config)
    content: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
    }
    if config.is_moe:
        content["moe"] = {"num_experts_per_tok": config.num_experts_per_tok, "num_experts": config.num_local_experts}
    (path / "params.json").write_text(json.dumps(content | params))
    (path / "tokenizer.model").write_bytes(b"not a real one")


def write_eight_parts(path: Path, tensors: dict[str, Tensor], raw_config: dict[str, Any], parts: int = 8) -> None:
    """Write params.json and consolidated.{00..07}.pt with stacked experts, w2 transposed."""
    path.mkdir(parents=True)
    config = ModelConfig.from_dict(raw_config)
    renamed = _renamed(tensors, raw_config)
    stored: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        if ".experts." not in name:
            stored[name.replace("feed_forward.gate", "block_sparse_moe.gate")] = tensor
    for layer in range(config.num_hidden_layers):
        for matrix in ("w1", "w2", "w3"):
            each = [
                renamed[f"layers.{layer}.feed_forward.experts.{e}.{matrix}.weight"]
                for e in range(config.num_local_experts)
            ]
            rows = [weight.T if matrix == "w2" else weight for weight in each]
            stored[f"layers.{layer}.block_sparse_moe.{matrix}"] = torch.cat(rows).contiguous()
    names = sorted(stored)
    for part in range(parts):
        torch.save({name: stored[name] for name in names[part::parts]}, path / f"consolidated.{part:02d}.pt")
    content = {key: raw_config[key] for key in raw_config if key not in ("architectures", "model_type", "torch_dtype")}
    (path / "params.json").write_text(json.dumps(content))
    (path / "tokenizer.model").write_bytes(b"not a real one")


def _renamed(tensors: dict[str, Tensor], raw_config: dict[str, Any]) -> dict[str, Tensor]:
    config = ModelConfig.from_dict(raw_config)
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for ours, theirs in _NAMES:
            new = new.replace(ours, theirs)
        if ".wq." in new:
            tensor = in_pairs(tensor, config.num_attention_heads)
        if ".wk." in new:
            tensor = in_pairs(tensor, config.num_key_value_heads)
        stored[new] = tensor.contiguous()
    return stored
