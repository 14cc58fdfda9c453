"""Arithmetic in torch for groups with zero points, whose codes are packed into int32 words.

Contract: W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g] with g the group of column k; codes and zeros are unsigned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.errors import ModelFileError
from mixq.formats.scheme import Scheme

WORD = 32
"""Bits of a word."""

BLOCK_WEIGHTS = 1 << 22
"""Weights dequantized at a time: intermediates take a few times as many in float32."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Bits of a code, and columns per scale; `group_size` -1 is a whole row."""

    bits: int
    group_size: int

    def width(self, K: int) -> int:
        """Return the columns of a group in a row of K."""
        return K if self.group_size == -1 else min(self.group_size, K)

    def count(self, K: int) -> int:
        """Return the groups of a row of K; the last may be shorter."""
        return -(-K // self.width(K))

    def trivial(self, K: int) -> Tensor:
        """Return the group of each column where groups are neighbours: int64 [K]."""
        return torch.arange(K) // self.width(K)

    def kept_scheme(self, K: int) -> Scheme | None:
        """Return the widest scheme whose groups are each within one of these: its scales are then these, repeated."""
        if self.bits not in (4, 8):
            return None
        fitting = (size for size in (128, 64, 32) if self.width(K) % size == 0 and K % size == 0)
        return next((Scheme(f"w{self.bits}", size) for size in fitting), None)


def words_for(count: int, bits: int, what: str) -> int:
    """Return the number of words for `count` codes; ModelFileError if there is a remainder."""
    if count * bits % WORD:
        raise ModelFileError(f"{what} {count} codes of {bits} bits, which do not fill whole words of {WORD} bits.")
    return count * bits // WORD


def unpack_words(words: Tensor, bits: int, order: Sequence[int]) -> Tensor:
    """Return the codes of int32 words [R, C]: uint8 [R, C * 32 / bits].

    The code at bits i * bits of a word, lowest first, is number `order[i]` of the codes in the word.
    """
    R, C = words.shape
    codes = torch.empty((R, C, WORD // bits), dtype=torch.uint8)
    for i, position in enumerate(order):
        codes[:, :, position] = (words >> (i * bits)) & ((1 << bits) - 1)
    return codes.view(R, -1)


def dequantize(codes: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """Return float32 [N, K] from codes [N, K], zeros [N, G], scales [N, G] and the group of each column, int64 [K].

    Exact: code - zero has 9 bits, a scale at most 11.
    """
    N, K = codes.shape
    weight = torch.empty((N, K), dtype=torch.float32)
    rows = max(1, BLOCK_WEIGHTS // K)
    for first in range(0, N, rows):
        block = slice(first, first + rows)
        by_column = zeros[block].float().index_select(1, groups)  # [rows, K]
        torch.sub(codes[block], by_column, out=weight[block])
        weight[block] *= scales[block].float().index_select(1, groups)
    return weight
