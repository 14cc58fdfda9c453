"""The whole engine with the GPU's kernels: trunk and cache hits by Triton, misses by the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mixq
from mixq.experts.accelerators import choose as accelerators
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.kernels.triton.kernels import TritonKernels
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral

PROMPT = [1, *range(20, 32)]
NEXT = [30, 60, 90, 12]
CONTEXT = 32


@pytest.mark.parametrize(("format", "kv", "captured"), [("nl4", "int8", False), ("w4", "bf16", True)])
def test_logits_are_the_cpus_within_a_thousandth_in_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, kv: str, captured: bool
) -> None:
    write_tiny_mixtral(tmp_path / "source", ffn=128, layers=2, vocab=100)
    folder = tmp_path / "source"
    if format != "bf16":
        folder = tmp_path / "out"
        quantize(tmp_path / "source", folder, format=format)

    def with_triton(*_: Any, **__: Any) -> SimulatedAccelerator:
        return SimulatedAccelerator(8_000_000, kernels=lambda: TritonKernels(torch.device("cpu")))

    cpu = mixq.load(folder, device="cpu", context=CONTEXT, kv=kv)
    with monkeypatch.context() as patch:
        patch.setattr(SimulatedAccelerator, "captures", captured)
        patch.setattr(accelerators, "SimulatedAccelerator", with_triton)
        gpu = mixq.load(folder, device="sim", context=CONTEXT, miss="cpu", kv=kv)
    offload = gpu.placement.offload
    assert offload is not None
    offload.resize([2, 4])
    offload.lockstep = True
    caches = cpu.new_kv_cache(), gpu.new_kv_cache()
    for token in NEXT:
        want, got = (model.forward([token], kv_cache=cache) for model, cache in zip((cpu, gpu), caches, strict=True))
        assert float((got - want).norm() / want.norm()) < 1e-3
    # A prompt is multiplied in bfloat16 on a GPU, in the integers of decode on the CPU; random weights amplify that.
    want, got = (model.forward(PROMPT, kv_cache=cache) for model, cache in zip((cpu, gpu), caches, strict=True))
    assert float((got - want).norm() / want.norm()) < 1e-1
    assert 0 < offload.telemetry.counters.hits < offload.telemetry.counters.requests
