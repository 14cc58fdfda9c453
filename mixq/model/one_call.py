"""A pass over a few tokens in one call of the kernels, instead of several for each layer.

Contract: the same bits as the layers one by one (`mixq.model.mixtral`). It needs all weights in the memory of the
kernels' device, and kernels that have such a call: the native ones, on the CPU. Between two calls of kernels that read
gigabytes, the code of Python and torch leaves the CPU's caches, which makes an operation of 2 µs take 20 to 100.

Axes: T tokens, S sequences, L layers, A active experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixq.config import ModelConfig
from mixq.kernels.dispatch import Kernels
from mixq.kernels.network_weights import NetworkWeights, Rows
from mixq.kernels.reference import DECODE_ROWS
from mixq.model.attention import Chunk, RotaryTable
from mixq.model.layer import DecoderLayer, Head


class OneCall:
    """The call, with all weights of a network."""

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        embed_tokens: Tensor,
        layers: Sequence[DecoderLayer],
        head: Head,
        rotary: RotaryTable,
    ) -> None:
        self._kernels = kernels
        weights = [layer.weights for layer in layers]
        self._network: NetworkWeights | None = None
        if None not in weights:
            self._network = NetworkWeights(
                embed_tokens,
                [layer for layer in weights if layer is not None],
                head.norm,
                head.lm_head,
                rotary.cos,
                rotary.sin,
                layers[0].feed_forward.num_experts_per_tok,
                config.sliding_window,
                config.rms_norm_eps,
            )

    def run(self, chunks: Sequence[Chunk], *, all_logits: bool) -> tuple[Tensor, Tensor] | None:
        """Fill the chunks' caches and advance them.

        Returns:
            The logits of each sequence's last token [S, V], or of all [T, V], and the chosen experts' ids [L, T, A].
            None, with the caches as they were, for more than `DECODE_ROWS` tokens or where there is no such call.
        """
        if self._network is None:
            return None
        rows = [Rows(chunk.kv_cache.layers, chunk.kv_cache.length, chunk.token_ids.tolist()) for chunk in chunks]
        if sum(len(row.token_ids) for row in rows) > DECODE_ROWS:
            return None
        for chunk, row in zip(chunks, rows, strict=True):
            chunk.kv_cache.check_room(len(row.token_ids))
        result = self._kernels.step(self._network, rows, all_logits=all_logits)
        if result is not None:
            for chunk, row in zip(chunks, rows, strict=True):
                chunk.kv_cache.advance(len(row.token_ids))
        return result
