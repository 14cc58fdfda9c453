"""Fills all kinds of tensors in a model folder with random values, fast.

Contract: codes are uniform; group scales have both signs and keep the variance of a linear layer's input. Generating
random numbers takes longer than filling memory, so one block is repeated. Its length is a prime, so no two rows
of a matrix and no two experts are equal. The values depend on the seed and on the order in which parameters are filled.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mixq.formats import nf4, nl4
from mixq.formats.architecture import Parameter
from mixq.formats.scheme import Scheme

_BLOCK = 4_194_301  # the largest prime below 4 Mi
_SCALES = 65_521  # the largest prime below 64 Ki


class Filler:
    """Fills tensors from repeated blocks of random numbers; each tensor takes the next piece."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._bytes = torch.empty(_BLOCK, dtype=torch.uint8).random_(0, 256, generator=generator)
        self._normal: Tensor | None = None  # created on first use
        self._generator = generator
        signs = torch.empty(_SCALES).random_(0, 2, generator=generator) * 2 - 1
        self._scales = (signs * torch.empty(_SCALES).uniform_(0.6, 1.0, generator=generator)).contiguous()
        self._scales_rms = _rms(self._scales)
        self._weights_of: dict[float, Tensor] = {}
        self._taken = 0

    def fill(
        self, parameter: Parameter, packed: tuple[Scheme, tuple[int, int]] | None, stored: Mapping[str, Tensor]
    ) -> None:
        """Fill the tensors of one parameter."""
        if packed is not None:
            self._fill_packed(parameter.module, *packed, stored)
        elif parameter.role == "norm":
            stored[parameter.name].fill_(1.0)
        else:
            spread = 1.0 if parameter.role == "embedding" else parameter.shape[1] ** -0.5
            self._tile(stored[parameter.name], self._weights(spread))

    def _fill_packed(self, module: str, scheme: Scheme, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> None:
        spread = shape[1] ** -0.5  # standard deviation of the weights
        if scheme.name == "nl4":
            self._tile(stored[f"{module}.weight_codes"], self._bytes)
            scale = self._scaled(127.0, torch.int8)
            self._tile(stored[f"{module}.weight_scale"], scale)
            row_scale = spread / (_rms(nl4.table_tensor().float()) * _rms(scale.float()))
            stored[f"{module}.weight_row_scale"].fill_(row_scale)
        elif scheme.name == "nf4":
            self._tile(stored[f"{module}.weight"], self._bytes)
            level = _rms(torch.tensor(nf4.QUANT_MAP))
            scale = self._scaled(spread / (level * self._scales_rms), torch.float32)
            self._tile(stored[f"{module}.weight.absmax"], scale.abs())
            stored[f"{module}.weight.quant_map"].copy_(torch.tensor(nf4.QUANT_MAP))
            state = nf4.State(shape, scheme.group_size, torch.bfloat16).to_json()
            stored[f"{module}.{nf4.STATE}"].copy_(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        else:
            self._tile(stored[f"{module}.weight_packed"].view(torch.uint8), self._bytes)
            level = _rms(torch.arange(2.0**scheme.bits) - 2.0 ** (scheme.bits - 1))
            scale = self._scaled(spread / (level * self._scales_rms), torch.bfloat16)
            self._tile(stored[f"{module}.weight_scale"], scale)
            stored[f"{module}.weight_shape"].copy_(torch.tensor(shape))

    def _weights(self, spread: float) -> Tensor:
        """Return normally distributed bfloat16 weights."""
        if self._normal is None:
            self._normal = torch.empty(_BLOCK).normal_(generator=self._generator)
        if spread not in self._weights_of:
            self._weights_of[spread] = (self._normal * spread).bfloat16()
        return self._weights_of[spread]

    def _scaled(self, factor: float, dtype: torch.dtype) -> Tensor:
        """Return group scales of both signs, from 0.6 to 1 times `factor`."""
        return (self._scales * factor).to(dtype)

    def _tile(self, target: Tensor, block: Tensor) -> None:
        flat, length = target.view(-1), len(block)
        start = self._taken % length
        self._taken += len(flat)
        head, rest = flat[: length - start], flat[length - start :]
        head.copy_(block[start : start + len(head)])
        whole = len(rest) // length * length
        rest[:whole].view(-1, length).copy_(block)  # torch divides the copy, and the first access, among its threads
        rest[whole:].copy_(block[: len(rest) - whole])


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
