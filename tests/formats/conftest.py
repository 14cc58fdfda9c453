"""Tiny random models and round-to-nearest folders of them, written by mixq.formats alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats import int_groups, nf4, nl4
from mixq.formats.architecture import parameters
from mixq.formats.atomic import atomic_write_json
from mixq.formats.packed import PackedLinear
from mixq.formats.quantization import QuantizationConfig
from mixq.formats.scheme import Scheme
from mixq.formats.shard_writer import ShardWriter

TINY: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A tiny Mixtral's config.json, with changes."""
    return {**TINY, **changes}


def random_state(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under transformers' per-expert names; norms are near one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for parameter in parameters(ModelConfig.from_dict(config)):
        weight = torch.randn(parameter.shape, generator=generator) * 0.05
        state[parameter.name] = (weight + 1 if parameter.role == "norm" else weight).to(dtype)
    return state


def round_to_nearest(
    weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16, *, powers_of_two: bool = False
) -> PackedLinear:
    """Pack a weight without any search. Scales take the sign of their group's largest weight, so half are negative.

    `powers_of_two` rounds w4's and w8's scales up to powers of two, so that bfloat16 holds every product exactly.
    """
    N, K = weight.shape
    groups = weight.float().reshape(N, -1, scheme.group_size)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))[..., 0]  # [N, G], signed
    if scheme.name == "nf4":
        return PackedLinear(scheme, (N, K), nf4.quantize(weight, scheme.group_size, scale_dtype))
    if scheme.name == "nl4":
        row_scale = (largest.abs().amax(1) / (127 * 127)).clamp(min=1e-30)
        scale = (largest / (row_scale[:, None] * 127)).round().clamp(-127, 127)
        scale[scale == 0] = 1
        table = nl4.table_tensor()
        target = groups / (scale * row_scale[:, None])[..., None]
        codes = (target[..., None] - table.float()).abs().argmin(-1).to(torch.uint8).reshape(N, K)
        return PackedLinear(scheme, (N, K), nl4.pack(codes, scale.to(torch.int8), row_scale), table)
    low, high = -(2 ** (scheme.bits - 1)), 2 ** (scheme.bits - 1) - 1
    scale = (largest / low).to(scale_dtype)
    if powers_of_two:
        scale = (scale.sign() * scale.abs().float().log2().ceil().exp2()).to(scale_dtype)
    q = (groups / scale.float()[..., None]).nan_to_num().round().clamp(low, high)
    return PackedLinear(scheme, (N, K), int_groups.pack(q.to(torch.int8).reshape(N, K), scale, scheme.bits))


def write_folder(
    path: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    quantization: QuantizationConfig | None = None,
    *,
    scale_dtype: torch.dtype = torch.bfloat16,
    powers_of_two: bool = False,
    shards: int = 1,
) -> dict[str, PackedLinear]:
    """Write a model folder; return what was packed, by layer name."""
    path.mkdir(parents=True, exist_ok=True)
    quantizable = {p.module for p in parameters(ModelConfig.from_dict(config)) if p.quantizable}
    packed: dict[str, PackedLinear] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        scheme = quantization.scheme_for(module) if quantization and module in quantizable else None
        if scheme is None:
            stored[name] = tensor
            continue
        packed[module] = round_to_nearest(tensor, scheme, scale_dtype, powers_of_two=powers_of_two)
        stored.update({f"{module}.{suffix}": part for suffix, part in packed[module].tensors.items()})
    content = dict(config)
    if quantization is not None:
        content["quantization_config"] = quantization.to_dict()
    atomic_write_json(path / "config.json", content)
    write_shards(path, stored, shards)
    return packed


def write_shards(path: Path, stored: Mapping[str, Tensor], shards: int = 1) -> None:
    """Write tensors as one file, or spread over several with an index."""
    names = sorted(stored)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
        chosen = names[i::shards]
        weight_map.update(dict.fromkeys(chosen, file))
        specs = {name: (stored[name].dtype, tuple(stored[name].shape)) for name in chosen}
        with ShardWriter(path / file, specs) as writer:
            for name in chosen:
                writer.write(name, stored[name])
            writer.finish()
    if shards > 1:
        atomic_write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


@pytest.fixture(scope="session")
def folders() -> SimpleNamespace:
    """The functions of this module, for tests."""
    return SimpleNamespace(
        tiny_config=tiny_config,
        random_state=random_state,
        round_to_nearest=round_to_nearest,
        write_folder=write_folder,
        write_shards=write_shards,
    )
