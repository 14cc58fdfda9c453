"""A checkpoint with a LoRA adapter merged into it, as a source: W + (alpha / r) * B @ A, tensor by tensor.

Contract: a tensor is merged when it is read and not stored: an adapter takes no disk and little memory. A tensor that
the adapter changes is float32, whatever the checkpoint's dtype; the others are unchanged. Results do not
depend on the number of threads. LoRA: https://arxiv.org/abs/2106.09685; rank-stabilised (alpha / sqrt(r)):
https://arxiv.org/abs/2312.03732.

fan_in_fan_out, which transposes for GPT-2's Conv1D, is ignored, as in PEFT, because these
models have only linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mixq.formats.architecture import Parameter
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.quantize.sources.adapter import Adapter
from mixq.quantize.sources.place import sampled
from mixq.quantize.sources.source import Source
from mixq.quantize.threads import map_in_threads, serial_operations

BLOCK = 1 << 18
"""Weights that a thread merges at a time."""


class LoraSource(Source):
    """A source and an adapter for it.

    Args:
        base: the checkpoint that the adapter was trained on.
        path: the adapter's folder: adapter_config.json and adapter_model.safetensors.

    Raises:
        ModelFileError: see `Adapter`.
        UsageError: its weights are pickled.
    """

    def __init__(self, base: Source, path: Path) -> None:
        adapter = Adapter(path, base.config)
        name = f"{base.name}+{adapter.name}"
        super().__init__(name, dict(base.raw_config), base.nbytes, path=base.path, revision=base.revision)
        self.itemsize = 4
        merged, replaced = len(adapter.low_rank), len(adapter.replaced)
        text = f"the adapter {adapter.name} is merged into {merged} linear {'layer' if merged == 1 else 'layers'}"
        if replaced:
            text += f" and replaces {replaced} {'tensor' if replaced == 1 else 'tensors'} in full"
        self.notices = (*base.notices, f"{text}.")
        self._base = base
        self._adapter = adapter

    def tensor(self, name: str) -> Tensor:
        replaced, low_rank = self._adapter.replaced.get(name), self._adapter.low_rank.get(name)
        weight = self._base.tensor(name) if replaced is None else self._adapter.tensors.tensor(replaced)
        if low_rank is None:
            return weight if replaced is None else weight.float()
        return merged(weight, *low_rank.factors(self._adapter.tensors), low_rank.scale)

    def kept(self, parameter: Parameter) -> Scheme | None:
        touched = parameter.name in self._adapter.low_rank or parameter.name in self._adapter.replaced
        return None if touched else self._base.kept(parameter)

    def packed(self, module: str) -> PackedLinear:
        return self._base.packed(module)

    def fingerprint(self) -> str:
        return sampled(*self._adapter.files, first=self._base.fingerprint())

    def side_files(self) -> Mapping[str, bytes]:
        return self._base.side_files()

    def cancel(self) -> None:
        self._base.cancel()


def merged(weight: Tensor, B: Tensor, A: Tensor, scale: float) -> Tensor:
    """Return weight + scale * B @ A as float32; weight: [N, K], B: [N, r], A: [r, K].

    The sum is computed in float64 and rounded once, so that neither a library's order of additions nor the block size
    changes the result.
    """
    N, K = weight.shape
    result = torch.empty(N, K)
    rows = max(1, BLOCK // K)
    with serial_operations() as threads:
        scaled = A.double() * scale

        def work(first: int) -> None:
            block = slice(first, first + rows)
            result[block] = weight[block].double().addmm_(B[block].double(), scaled)

        map_in_threads(work, range(0, N, rows), threads)
    return result
