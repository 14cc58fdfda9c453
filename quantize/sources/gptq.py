"""GPTQ checkpoints: packed along the inputs; with act-order, columns belong to groups in any order.

Contract: tensors of a linear layer [N out, K in], with b bits and G groups: `qweight` int32 [K*b/32, N], word r of a
column holding inputs r*32/b and on, lowest bits first; `qzeros` int32 [G, N*b/32], likewise along the outputs; `scales`
[G, N]; `g_idx` int32 [K], the group of each input, k // group_size if it is absent. In checkpoint_format "gptq",
the default, qzeros hold zero - 1, in "gptq_v2" zero. As in AutoGPTQ 0.7
(auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, `pack` and `forward`; paper: arXiv 2210.17323) and GPTQModel,
which introduced "gptq_v2". Other formats (marlin, bitblas ...) and 3 bits are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixq.errors import Fields, ModelFileError
from mixq.quantize.sources.column_groups import WORD, Grouping, unpack_words, words_for
from mixq.quantize.sources.column_packed import ColumnPackedSource, Specs, read_group_size

BITS = (2, 4, 8)
SCALE_DTYPES = (torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)


class GptqSource(ColumnPackedSource):
    """A checkpoint packed by GPTQ; see `ColumnPackedSource`."""

    method = "gptq"
    _zero_offset = 1

    def _read_grouping(self, fields: Fields) -> Grouping:
        raw = fields.values
        named = "checkpoint_format" if raw.get("checkpoint_format") else "format"
        format = raw.get(named) or "gptq"
        if format not in ("gptq", "gptq_v2"):
            raise fields.wrong(named, "'gptq' or 'gptq_v2'")
        if raw.get("is_marlin_format"):
            raise fields.wrong("is_marlin_format", "false")
        if raw.get("pack_dtype", "int32") not in ("int32", None):
            raise fields.wrong("pack_dtype", "'int32'")
        self._zero_offset = 1 if format == "gptq" else 0
        return Grouping(fields.one_of("bits", BITS), read_group_size(fields, "group_size"))

    def _specs(self, module: str, shape: tuple[int, int]) -> Specs:
        (N, K), bits = shape, self._grouping.bits
        G = self._grouping.count(K)
        specs: Specs = {
            "qweight": ((torch.int32,), (words_for(K, bits, f"{module}.qweight: a column has"), N)),
            "qzeros": ((torch.int32,), (G, words_for(N, bits, f"{module}.qzeros: a row has"))),
            "scales": (SCALE_DTYPES, (G, N)),
        }
        if self._stored.entry(f"{module}.g_idx") is not None:
            specs["g_idx"] = (INDEX_DTYPES, (K,))
        return specs

    def _codes(self, module: str) -> Tensor:
        bits = self._grouping.bits
        return unpack_words(self._stored.tensor(f"{module}.qweight").T, bits, range(WORD // bits))

    def _zeros(self, module: str) -> Tensor:
        bits = self._grouping.bits
        stored = unpack_words(self._stored.tensor(f"{module}.qzeros"), bits, range(WORD // bits))
        # A zero point of 0 was stored as all ones; as in AutoGPTQ, the sum wraps around.
        return ((stored + self._zero_offset) & ((1 << bits) - 1)).T

    def _groups(self, module: str) -> Tensor:
        if self._stored.entry(f"{module}.g_idx") is None:
            return super()._groups(module)
        groups = self._stored.tensor(f"{module}.g_idx").to(torch.int64)
        G = self._grouping.count(self._linears[module][1])
        lowest, highest = int(groups.min()), int(groups.max())
        if lowest < 0 or highest >= G:
            raise ModelFileError(
                f"{module}.g_idx has groups from {lowest} to {highest}; there are {G}, counted from 0.",
                hint="The checkpoint is damaged: download it again.",
            )
        return groups
