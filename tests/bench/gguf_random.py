"""Writes a GGUF file of a model's shape with random weights, in seconds: no float weight is ever made.

Contract: blocks are valid (random codes, small scales), so that llama.cpp does the work that it does on a real model.
Routers and norms are float32. There is no vocabulary: the model takes token ids. Formats: the GGUF specification and
ggml-common.h; recipes: llama_tensor_get_type_impl in llama-quant.cpp for a model of 8 experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model's shape the file holds."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    experts: int
    experts_used: int
    vocab: int
    context: int
    rope_theta: float


MIXTRAL_8X7B = Shape(32, 4096, 14336, 32, 8, 8, 2, 32000, 32768, 1e6)

RECIPES: dict[str, dict[str, Type]] = {
    # llama-quantize --pure Q4_0: a token of 4 layers and the head reads 961 MB.
    "q4_0-pure": {"": Type.Q4_0},
    # llama-quantize Q4_0
    "q4_0": {"": Type.Q4_0, "output": Type.Q6_K, "attn_k": Type.Q8_0, "attn_v": Type.Q8_0},
    # llama-quantize Q4_K_S
    "q4_k_s": {
        "": Type.Q4_K,
        "output": Type.Q6_K,
        "attn_k": Type.Q8_0,
        "attn_v": Type.Q8_0,
        "attn_output": Type.Q5_K,
    },
    # llama-quantize Q4_K_M; half of ffn_down_exps is Q6_K, see `type_of`
    "q4_k_m": {
        "": Type.Q4_K,
        "output": Type.Q6_K,
        "attn_k": Type.Q8_0,
        "attn_v": Type.Q8_0,
        "attn_output": Type.Q5_K,
    },
    # llama-quantize IQ4_XS with an importance matrix, as published files have it; without one, ffn_down_exps of the
    # first eighth of the layers is Q5_K
    "iq4_xs": {
        "": Type.IQ4_XS,
        "output": Type.Q6_K,
        "attn_k": Type.Q8_0,
        "attn_v": Type.Q8_0,
        "attn_output": Type.Q5_K,
    },
}
"""Type by kind of tensor; "" is every other one."""

FILE_TYPES = {
    "q4_0-pure": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4_k_s": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "iq4_xs": gguf.LlamaFileType.MOSTLY_IQ4_XS,
}


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """A tensor of the file; `shape` is as numpy has it, the inputs last."""

    name: str
    shape: tuple[int, ...]
    type: Type

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def mixtral(layers: int, **changes: Any) -> Shape:
    """Return Mixtral 8x7B's shape with fewer layers, or other changes."""
    return replace(MIXTRAL_8X7B, layers=layers, **changes)


def type_of(recipe: str, kind: str, layer: int, layers: int) -> Type:
    """Return the type of a layer's matrix, as llama_tensor_get_type_impl in llama-quant.cpp chooses it."""
    more_bits = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if recipe == "q4_k_m" and kind == "ffn_down_exps" and more_bits:
        return Type.Q6_K
    types = RECIPES[recipe]
    return types.get(kind, types[""])


def tensors(shape: Shape, recipe: str) -> list[RandomTensor]:
    """Return the file's tensors in its order."""
    types = RECIPES[recipe]
    D, F, E = shape.hidden, shape.ffn, shape.experts
    kv = shape.kv_heads * (D // shape.heads)
    found = [RandomTensor("token_embd.weight", (shape.vocab, D), types[""])]
    for layer in range(shape.layers):
        matrices = {
            "attn_q": (D, D),
            "attn_k": (kv, D),
            "attn_v": (kv, D),
            "attn_output": (D, D),
            "ffn_gate_exps": (E, F, D),
            "ffn_down_exps": (E, D, F),
            "ffn_up_exps": (E, F, D),
        }
        found += [
            RandomTensor(f"blk.{layer}.{kind}.weight", size, type_of(recipe, kind, layer, shape.layers))
            for kind, size in matrices.items()
        ]
        unquantized = {"attn_norm": (D,), "ffn_norm": (D,), "ffn_gate_inp": (E, D)}
        found += [RandomTensor(f"blk.{layer}.{kind}.weight", size, Type.F32) for kind, size in unquantized.items()]
    found.append(RandomTensor("output_norm.weight", (D,), Type.F32))
    found.append(RandomTensor("output.weight", (shape.vocab, D), types.get("output", types[""])))
    return found


def bytes_per_token(shape: Shape, recipe: str) -> int:
    """Return the bytes of the weights that one token reads: all but the embedding and the experts not chosen."""
    total = 0
    for tensor in tensors(shape, recipe):
        if tensor.name.endswith("_exps.weight"):
            total += tensor.nbytes // shape.experts * shape.experts_used
        elif tensor.name != "token_embd.weight":
            total += tensor.nbytes
    return total


def write(path: Path, shape: Shape, recipe: str, *, seed: int = 0) -> None:
    """Write the file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_file_type(FILE_TYPES[recipe])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_used)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    listed = tensors(shape, recipe)
    for tensor in listed:
        float32 = tensor.type == Type.F32
        size = tensor.shape if float32 else gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type)
        dtype = np.dtype(np.float32 if float32 else np.uint8)
        writer.add_tensor_info(tensor.name, size, dtype, tensor.nbytes, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for tensor in listed:
        writer.write_tensor_data(_random_data(tensor, rng))
    writer.close()


def _random_data(tensor: RandomTensor, rng: np.random.Generator) -> NDArray[Any]:
    if tensor.name.endswith("norm.weight"):
        return np.ones(tensor.shape, np.float32)
    deviation = 1 / math.sqrt(tensor.shape[-1])  # keeps a row of unit variance at unit variance
    if tensor.type == Type.F32:
        return (rng.standard_normal(tensor.shape) * deviation).astype(np.float32)
    _, size = gguf.GGML_QUANT_SIZES[tensor.type]
    data = np.frombuffer(rng.bytes(tensor.nbytes), np.uint8).copy()
    BLOCKS[tensor.type](data.reshape(-1, size), deviation, rng)
    return data.reshape(gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type))


# Each takes random blocks and makes their scales such that the weights have the deviation asked for, roughly.


def _simple(codes: float) -> Callable[[Bytes, float, np.random.Generator], None]:
    """block_q4_0 and block_q8_0: an fp16 scale, then codes of the given deviation."""

    def fill(blocks: Bytes, deviation: float, rng: np.random.Generator) -> None:
        blocks[:, :2] = _signed_fp16(deviation / codes, len(blocks), rng)

    return fill


def _two_level(codes: float, mean_code: float) -> Callable[[Bytes, float, np.random.Generator], None]:
    """block_q4_K and block_q5_K: fp16 scales of the scales and of the minima, 12 bytes of six-bit scales and minima."""

    def fill(blocks: Bytes, deviation: float, rng: np.random.Generator) -> None:
        blocks[:, 4:16] = 0b01100110  # four scales of 38, four of 22 (their top bits stand apart), minima the same
        scale = deviation / (31 * codes)
        blocks[:, :2] = _fp16(scale, len(blocks), rng)
        blocks[:, 2:4] = _fp16(scale * mean_code, len(blocks), rng)

    return fill


def _q6_k(blocks: Bytes, deviation: float, rng: np.random.Generator) -> None:
    """block_q6_K: 192 bytes of codes, 16 int8 scales, an fp16 scale of the scales."""
    blocks[:, 192:208] = 8
    blocks[:, 208:] = _signed_fp16(deviation / (8 * 18.5), len(blocks), rng)


def _iq4_xs(blocks: Bytes, deviation: float, rng: np.random.Generator) -> None:
    """block_iq4_xs: an fp16 scale of the scales, 6 bytes of eight six-bit scales, 128 bytes of codes."""
    blocks[:, 2:4] = 0b10101010  # the scales' upper two bits; 32 is taken off, so each is 8
    blocks[:, 4:8] = 0b10001000
    blocks[:, :2] = _signed_fp16(deviation / (8 * 69), len(blocks), rng)


def _signed_fp16(scale: float, count: int, rng: np.random.Generator) -> Bytes:
    """Return fp16 values around `scale` and `-scale` as bytes [count, 2].

    Codes such as -8 to 7 have a mean. Without signs it would add up over a row, all tokens would become alike, and the
    routers would choose the same experts for each.
    """
    values = _fp16(scale, count, rng)
    values[:, 1] |= rng.integers(0, 2, count, np.uint8) << 7
    return values


def _fp16(scale: float, count: int, rng: np.random.Generator) -> Bytes:
    """Return fp16 values around `scale` as bytes [count, 2]."""
    values = (scale * (0.8 + 0.4 * rng.random(count, dtype=np.float32))).astype("<f2")
    return values.view(np.uint8).reshape(count, 2)


BLOCKS: Mapping[Type, Callable[[Bytes, float, np.random.Generator], None]] = {
    Type.Q4_0: _simple(4.6),
    Type.Q8_0: _simple(74),
    Type.Q4_K: _two_level(4.6, 7.5),
    Type.Q5_K: _two_level(9.2, 15.5),
    Type.Q6_K: _q6_k,
    Type.IQ4_XS: _iq4_xs,
}
