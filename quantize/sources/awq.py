"""AWQ checkpoints, version "gemm": packed along the outputs, eight 4-bit codes per word, interleaved.

Contract: tensors of a linear layer [N out, K in] with G groups: `qweight` int32 [K, N/8], `qzeros` int32 [G, N/8],
`scales` [G, N]; the code at bits 4*i of word c belongs to output 8*c + ORDER[i]. As in AutoAWQ 0.2
(awq/modules/linear/ gemm.py, WQLinear_GEMM.from_linear; paper: arXiv 2306.00978). The versions for other kernels (gemv,
gemv_fast, marlin, llm-awq ...) have other layouts and are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixq.errors import Fields
from mixq.quantize.sources.column_groups import Grouping, unpack_words, words_for
from mixq.quantize.sources.column_packed import ColumnPackedSource, Specs, read_group_size

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SCALE_DTYPES = (torch.float16, torch.bfloat16)


class AwqSource(ColumnPackedSource):
    """A checkpoint packed by AWQ; see `ColumnPackedSource`."""

    method = "awq"

    def _read_grouping(self, fields: Fields) -> Grouping:
        raw = fields.values
        version = next((name for name in ("version", "checkpoint_format", "format") if raw.get(name)), None)
        if version is not None and str(raw[version]).lower() != "gemm":
            raise fields.wrong(version, "'gemm'")
        if raw.get("backend") == "llm-awq":  # transformers takes this for a version too
            raise fields.wrong("backend", "that of AutoAWQ")
        bits = fields.one_of("bits" if "bits" in raw else "w_bit", (BITS,))
        return Grouping(bits, read_group_size(fields, "group_size" if "group_size" in raw else "q_group_size"))

    def _specs(self, module: str, shape: tuple[int, int]) -> Specs:
        N, K = shape
        G, words = self._grouping.count(K), words_for(N, BITS, f"{module}.qweight: a row has")
        return {
            "qweight": ((torch.int32,), (K, words)),
            "qzeros": ((torch.int32,), (G, words)),
            "scales": (SCALE_DTYPES, (G, N)),
        }

    def _codes(self, module: str) -> Tensor:
        return unpack_words(self._stored.tensor(f"{module}.qweight"), BITS, ORDER).T

    def _zeros(self, module: str) -> Tensor:
        return unpack_words(self._stored.tensor(f"{module}.qzeros"), BITS, ORDER).T
