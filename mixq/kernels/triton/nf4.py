"""nf4 weights: dequantized by bitsandbytes if it is installed, else by torch, then multiplied in 16 bits.

Contract: bitsandbytes is imported when the first nf4 weight is used. Its state of a weight is created once, since
reading it from a tensor waits for the GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear


class Nf4:
    """Dequantizes nf4 weights of a device.

    Attributes:
        installed: whether bitsandbytes is installed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: dict[int, tuple[PackedLinear, Any]] = {}
        self._functional: Any = None
        self.installed = importlib.util.find_spec("bitsandbytes") is not None

    def dense(self, weight: PackedLinear, dtype: torch.dtype) -> Tensor:
        """Return the weights [N, K]; through the dtype of its quant_state, as in bitsandbytes."""
        if not self.installed:
            return weight.dequantize().to(dtype)
        if self._functional is None:
            self._functional = importlib.import_module("bitsandbytes.functional")
        found = self._states.get(id(weight))
        if found is None:
            parts = {name: tensor for name, tensor in weight.tensors.items() if name != "weight"}
            state = self._functional.QuantState.from_dict(parts, device=self._device)
            found = self._states[id(weight)] = weight, state
        codes = weight.tensors["weight"]
        dense: Tensor = self._functional.dequantize_4bit(codes, found[1])
        return dense.to(dtype)
