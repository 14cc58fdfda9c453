"""A w4 or w8 folder loads in transformers with compressed-tensors, and computes what our reference says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mixq
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.formats.quantization import ATTENTION_TARGET, EXPERTS_TARGET, MLP_TARGET, QuantizationConfig
from mixq.formats.scheme import Scheme

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

TOKENS = torch.tensor([[1, 5, 17, 90, 33, 2, 64, 8, 8, 41, 70, 3]])


def logits_of(path: Path, dtype: torch.dtype) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    model.to(dtype)  # unpacked experts are bfloat16 whatever one asks for
    with torch.no_grad():
        return model(TOKENS).logits


def dequantized_folder(path: Path, source: ModelFolder, config: dict[str, Any], folders: SimpleNamespace) -> None:
    """Write our own dequantized reference of a packed folder, unquantized."""
    state = folders.random_state(config)
    for name in state:
        weight = source.linear(name.removesuffix(".weight"))
        state[name] = (weight.dequantize() if isinstance(weight, PackedLinear) else weight).to(state[name].dtype)
    folders.write_folder(path, config, state)


CASES = [
    ("w4:32", "w8:128"),
    ("w4:64", "w8:64"),
    ("w4:128", "w8:32"),
    ("w4:32", "w4:32"),
    ("w8:128", "w8:128"),
    ("w8:32", "w8:32"),
]


@pytest.mark.parametrize(("experts", "attention"), CASES)
def test_transformers_gives_the_logits_of_our_dequantized_weights(
    experts: str, attention: str, tmp_path: Path, folders: SimpleNamespace
) -> None:
    config = folders.tiny_config()
    quantization = QuantizationConfig.compressed_tensors(
        {EXPERTS_TARGET: Scheme.parse(experts), ATTENTION_TARGET: Scheme.parse(attention)}
    )
    packed = folders.write_folder(tmp_path / "packed", config, folders.random_state(config), quantization, shards=3)
    assert len(packed) == 2 * (4 + 3 * 4)
    assert any((linear.tensors["weight_scale"] < 0).any() for linear in packed.values())
    dequantized_folder(tmp_path / "dense", ModelFolder.open(tmp_path / "packed"), config, folders)

    theirs = logits_of(tmp_path / "packed", torch.bfloat16)
    ours = logits_of(tmp_path / "dense", torch.bfloat16)
    assert torch.isfinite(theirs).all()
    assert theirs.float().std() > 0.01
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


@pytest.mark.parametrize(("experts", "attention"), CASES[:3])
def test_transformers_gives_the_logits_of_mixq(
    experts: str, attention: str, tmp_path: Path, folders: SimpleNamespace
) -> None:
    """The same packed folder in both programs, in float32: relative L2 within 1e-4.

    transformers unpacks experts to bfloat16; scales that are powers of two make that exact.
    """
    config = folders.tiny_config()
    quantization = QuantizationConfig.compressed_tensors(
        {EXPERTS_TARGET: Scheme.parse(experts), ATTENTION_TARGET: Scheme.parse(attention)}
    )
    folders.write_folder(tmp_path, config, folders.random_state(config), quantization, powers_of_two=True, shards=3)
    theirs = logits_of(tmp_path, torch.float32)[0]
    ours = mixq.load(tmp_path, exact=True, context=64).forward(TOKENS[0].tolist())
    assert (ours - theirs).norm() / theirs.norm() < 1e-4


def test_a_float16_folder_has_float16_scales(tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config(torch_dtype="float16")
    state = folders.random_state(config, torch.float16)
    quantization = QuantizationConfig.compressed_tensors({EXPERTS_TARGET: Scheme("w4", 32)})
    folders.write_folder(tmp_path / "packed", config, state, quantization, scale_dtype=torch.float16)
    source = ModelFolder.open(tmp_path / "packed")
    for name in state:
        weight = source.linear(name.removesuffix(".weight"))
        state[name] = (weight.dequantize() if isinstance(weight, PackedLinear) else weight).to(torch.float16)
    folders.write_folder(tmp_path / "dense", config, state)
    theirs, ours = logits_of(tmp_path / "packed", torch.float16), logits_of(tmp_path / "dense", torch.float16)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


def test_a_dense_relative_loads_too(tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config(architectures=["MistralForCausalLM"], model_type="mistral")
    quantization = QuantizationConfig.compressed_tensors(
        {MLP_TARGET: Scheme("w4", 64), ATTENTION_TARGET: Scheme("w8", 128)}, ignore=("lm_head",)
    )
    folders.write_folder(tmp_path / "packed", config, folders.random_state(config), quantization)
    dequantized_folder(tmp_path / "dense", ModelFolder.open(tmp_path / "packed"), config, folders)
    torch.testing.assert_close(
        logits_of(tmp_path / "packed", torch.bfloat16), logits_of(tmp_path / "dense", torch.bfloat16), rtol=0, atol=0
    )
