"""Weights in the layouts of GGUF: plain rows, and Q4_0 and Q8_0 blocks of 32 weights.

Contract: a matrix [N, K] becomes bytes uint8 [N, bytes of a row]; each row stands for itself, so that rows may be
reordered and matrices laid one after another. Integer groups (w4, w8) keep their codes, and only their scale is
rounded, to float16. Source: ggml-common.h, block_q4_0 and block_q8_0 (an fp16 scale, then the codes; byte j of Q4_0
holds weight j in its low half and weight j + 16 in its high half). No file and no model is known here.

Axes: N rows (outputs), K columns (inputs), B = K / 32 blocks in a row, G groups in a row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixq.errors import ModelFileError
from mixq.formats import int_groups
from mixq.formats.packed import PackedLinear

Bytes = NDArray[np.uint8]

BLOCK = 32
"""Weights of a block."""


def plain_rows(tensor: Tensor, dtype: torch.dtype) -> Bytes:
    """Return a tensor [..., K] as rows of bfloat16, float16 or float32, [N, bytes]; a vector is one row."""
    matrix = tensor.reshape(-1, tensor.shape[-1]).to(dtype).contiguous()
    return np.asarray(matrix.view(torch.uint8).numpy())


def q4_0_rows(packed: PackedLinear) -> Bytes:
    """Return a w4 Linear as Q4_0 blocks.

    Raises:
        ModelFileError: a scale that float16 cannot hold.
    """
    q, scale = int_groups.unpack(packed.tensors, packed.scheme.bits)
    stored = (q + 8).view(torch.uint8).reshape(len(q), -1, 2, BLOCK // 2)  # [N, B, 2, 16]
    return _joined(scale, stored[:, :, 0] | (stored[:, :, 1] << 4))


def q8_0_rows(packed: PackedLinear) -> Bytes:
    """Return a w8 Linear, or a w4 one with codes of -8 to 7, as Q8_0 blocks.

    Raises:
        ModelFileError: a scale that float16 cannot hold.
    """
    q, scale = int_groups.unpack(packed.tensors, packed.scheme.bits)
    return _joined(scale, q.view(torch.uint8).reshape(len(q), -1, BLOCK))


def _joined(scale: Tensor, codes: Tensor) -> Bytes:
    """Return blocks of scale [N, G] and code bytes [N, B, bytes of a block's codes]; a group's scale is repeated."""
    N, B, _ = codes.shape
    halves = scale.to(torch.float16)
    if not torch.isfinite(halves).all():
        raise ModelFileError(
            "a scale is beyond float16, in which GGUF's blocks have theirs.", hint="Export with --type bf16."
        )
    repeated = halves.repeat_interleave(B // halves.shape[1], dim=1)[:, :, None]  # [N, B, 1]
    return np.asarray(torch.cat((repeated.view(torch.uint8), codes), dim=2).reshape(N, -1).numpy())
