"""Rows of a GGUF tensor as weights, or as the codes and scales that they are packed as.

Contract: a matrix is uint8 [N, bytes of a row]; each row stands for itself. What the package gguf dequantizes is
dequantized by it, to float32. Q4_0 and Q8_0 are w4 and w8 with groups of 32 and float16 scales: `unpacked` changes no
code and no scale. No file is known here.

Axes: N rows (outputs), K columns (inputs), B = K / 32 blocks in a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mixq.errors import ModelFileError
from mixq.formats.scheme import Scheme
from mixq.quantize.sources.gguf_file import gguf_package

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are no blocks: numbers in a row."""
KEPT = {"Q4_0": Scheme("w4", 32), "Q8_0": Scheme("w8", 32)}
"""Types whose blocks are groups of one of the schemes."""
AT_ONCE = 1 << 22
"""Weights that are dequantized at once: the package's own intermediates are several times that."""


def check_type(what: str, type: str) -> None:
    """Refuse a type that nobody dequantizes, which the package gguf says only when it is asked to.

    Raises:
        ModelFileError: it is one; `what` names the tensor.
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
        with np.errstate(over="ignore", invalid="ignore"):  # the caller counts what is NaN or infinite
            some = gguf.quants.dequantize(rows[first : first + step].numpy(), number)
        weights[first : first + step] = torch.from_numpy(some)
    return weights


def unpacked(rows: Tensor, type: str) -> tuple[Tensor, Tensor]:
    """Return Q4_0 or Q8_0 blocks, uint8 [N, bytes of a row], as codes int8 [N, K] and scales float16 [N, B].

    Source: ggml-common.h, block_q4_0 and block_q8_0: an fp16 scale, then the codes. Byte j of Q4_0 holds weight j in
    its low half and weight j + 16 in its high half, both + 8.
    """
    N = len(rows)
    blocks = rows.reshape(N, -1, 18 if type == "Q4_0" else 34)  # [N, B, bytes]
    scale = blocks[:, :, :2].contiguous().view(torch.float16).squeeze(2)  # [N, B]
    codes = blocks[:, :, 2:]
    if type == "Q8_0":
        return codes.contiguous().view(torch.int8).reshape(N, -1), scale
    q = torch.cat((codes & 15, codes >> 4), dim=2).view(torch.int8) - 8  # [N, B, 32]
    return q.reshape(N, -1), scale
