"""What reading and writing GGUF share: llama.cpp's tensor names, order of rows, and block types.

Contract: a matrix is uint8 [N, bytes of a row]; rows are independent, so they can be reordered and matrices
concatenated. The package gguf dequantizes all other types, to float32. Q4_0 and Q8_0 are w4 and w8
with groups of 32 and float16 scales: `unpacked` changes no code and no scale; writing rounds scales to float16.

Source: ggml-common.h, block_q4_0 and block_q8_0: an fp16 scale, then the codes. Byte j of Q4_0 holds weight j in its
low half and weight j + 16 in its high half, both + 8. Names: gguf-py/gguf/constants.py of llama.cpp, "llama".

Axes: N rows (outputs), K columns (inputs), B = K / 32 blocks in a row, G groups in a row.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import MixqError, ModelFileError
from mixq.formats import int_groups
from mixq.formats.architecture import Parameter
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types without blocks: plain numbers."""
BLOCK = 32
"""Weights of a block of Q4_0 and Q8_0."""
KEPT = {"Q4_0": Scheme("w4", BLOCK), "Q8_0": Scheme("w8", BLOCK)}
"""Types whose blocks are groups of one of the schemes."""
AT_ONCE = 1 << 22
"""Weights that are dequantized at a time; the package's intermediates are several times as large."""

_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate": "ffn_gate_inp",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}


def gguf_package() -> ModuleType:
    """Return the package gguf; MixqError if it is not installed."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise MixqError("GGUF needs the package gguf.", hint="Install it: pip install gguf") from None
    return gguf


def tensor_name(parameter: Parameter, *, merged: bool = True) -> str:
    """Return llama.cpp's name of a parameter's tensor: one for all experts of a matrix, or one per expert."""
    own = _NAMES[parameter.module.rsplit(".", 1)[-1]]
    if parameter.expert is not None:
        own += "_exps" if merged else f".{parameter.expert}"
    return f"{own}.weight" if parameter.layer is None else f"blk.{parameter.layer}.{own}.weight"


def rotated_heads(parameter: Parameter, config: ModelConfig) -> int:
    """Return the number of heads whose rows are in another order than in Hugging Face's q and k; 0 for other
    matrices."""
    return {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(parameter.role, 0)


def halves_to_pairs(rows: Tensor, heads: int) -> Tensor:
    """Return the rows of q or k [heads * d, K] in llama.cpp's and Mistral's order.

    Hugging Face rotates the two halves of a head against each other, llama.cpp neighbouring rows: row i of the first
    half is followed by row i of the second (`LlamaModel.permute` of llama.cpp's converter).
    """
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def pairs_to_halves(rows: Tensor, heads: int) -> Tensor:
    """Return the rows of q or k [heads * d, K] in Hugging Face's order: of each head those of even number first."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def check_type(what: str, type: str) -> None:
    """Refuse a type that the package gguf cannot dequantize; the package reports this only when it is used.

    Raises:
        ModelFileError: the type is not supported; `what` names the tensor.
    """
    if type in PLAIN:
        return
    gguf = gguf_package()
    number = gguf.GGMLQuantizationType[type]
    block = torch.zeros(1, gguf.GGML_QUANT_SIZES[number][1], dtype=torch.uint8)
    try:
        gguf.quants.dequantize(block.numpy(), number)
    except NotImplementedError as error:
        raise ModelFileError(f"{what} is {type}, which the package gguf does not dequantize.") from error


def dequantized(rows: Tensor, type: str, K: int) -> Tensor:
    """Return blocks, uint8 [N, bytes of a row], as weights, float32 [N, K]."""
    gguf = gguf_package()
    number = gguf.GGMLQuantizationType[type]
    weights = torch.empty(len(rows), K)
    step = max(1, AT_ONCE // K)
    for first in range(0, len(rows), step):
        with np.errstate(over="ignore", invalid="ignore"):  # the caller counts NaN and infinite weights
            some = gguf.quants.dequantize(rows[first : first + step].numpy(), number)
        weights[first : first + step] = torch.from_numpy(some)
    return weights


def unpacked(rows: Tensor, type: str) -> tuple[Tensor, Tensor]:
    """Return Q4_0 or Q8_0 blocks, uint8 [N, bytes of a row], as codes int8 [N, K] and scales float16 [N, B]."""
    N = len(rows)
    blocks = rows.reshape(N, -1, 18 if type == "Q4_0" else 34)  # [N, B, bytes]
    scale = blocks[:, :, :2].contiguous().view(torch.float16).squeeze(2)  # [N, B]
    codes = blocks[:, :, 2:]
    if type == "Q8_0":
        return codes.contiguous().view(torch.int8).reshape(N, -1), scale
    q = torch.cat((codes & 15, codes >> 4), dim=2).view(torch.int8) - 8  # [N, B, 32]
    return q.reshape(N, -1), scale


def plain_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor [..., K] as rows of bfloat16, float16 or float32, uint8 [N, bytes]; a vector is one row."""
    return tensor.reshape(-1, tensor.shape[-1]).to(dtype).contiguous().view(torch.uint8)


def block_rows(packed: PackedLinear, type: str) -> Tensor:
    """Return a w4 layer as Q4_0 blocks, or a w4 or w8 one as Q8_0 blocks: uint8 [N, bytes of a row].

    Raises:
        ModelFileError: a scale that float16 cannot hold.
    """
    q, scale = int_groups.unpack(packed.tensors, packed.scheme.bits)
    if type == "Q4_0":
        halves = (q + 8).view(torch.uint8).reshape(len(q), -1, 2, BLOCK // 2)  # [N, B, 2, 16]
        codes = halves[:, :, 0] | (halves[:, :, 1] << 4)
    else:
        codes = q.view(torch.uint8).reshape(len(q), -1, BLOCK)
    N, B, _ = codes.shape
    stored = scale.to(torch.float16)
    if not torch.isfinite(stored).all():
        raise ModelFileError(
            "a scale is too large for float16, which GGUF uses for scales.", hint="Export with --type bf16."
        )
    repeated = stored.repeat_interleave(B // stored.shape[1], dim=1)[:, :, None]  # [N, B, 1]
    return torch.cat((repeated.view(torch.uint8), codes), dim=2).reshape(N, -1)
