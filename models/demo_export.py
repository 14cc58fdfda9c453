"""Writes the trained network as a Hugging Face folder in bfloat16, with Mixtral's tensor names."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .demo_network import DemoNetwork, Layer


def tensors(network: DemoNetwork) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {
        "model.embed_tokens.weight": network.embed_tokens,
        "model.norm.weight": network.norm,
        "lm_head.weight": network.lm_head,
    }
    for i, layer in enumerate(network.layers):
        assert isinstance(layer, Layer)
        prefix = f"model.layers.{i}."
        named[prefix + "input_layernorm.weight"] = layer.input_layernorm
        named[prefix + "post_attention_layernorm.weight"] = layer.post_attention_layernorm
        for name in ("q", "k", "v", "o"):
            named[f"{prefix}self_attn.{name}_proj.weight"] = getattr(layer, name)
        named[prefix + "block_sparse_moe.gate.weight"] = layer.gate
        for e in range(network.config.num_local_experts):
            expert = f"{prefix}block_sparse_moe.experts.{e}."
            named[expert + "w1.weight"], named[expert + "w3.weight"] = layer.w13[e, 0], layer.w13[e, 1]
            named[expert + "w2.weight"] = layer.w2[e]
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in named.items()}


def config(network: DemoNetwork) -> dict[str, object]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **asdict(network.config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "output_router_logits": False,
        "router_jitter_noise": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


TOKENIZER_CONFIG: dict[str, object] = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": True,
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
    "chat_template": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system, messages = messages[0]['content'] + '\\n\\n', messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
}


def export(network: DemoNetwork, tokenizer: Path, folder: Path) -> None:
    """Write the folder; existing files of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(network), folder / "model.safetensors", metadata={"format": "pt"})
    documents = {
        "config.json": config(network),
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
