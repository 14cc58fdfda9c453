"""A few of the kernels, compiled for GPUs that are not here; all of them: `tests/bench/triton_compile.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.bench import triton_compile

SOME = ("linear nl4:32, 1 rows, asm", "down w8:128, 1 rows", "RMSNorm, prepares", "attention int8")


@pytest.mark.parametrize("target", [75, 80])
@pytest.mark.parametrize("name", SOME)
def test_kernels_compile_and_do_not_spill(
    name: str, target: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = next(case for case in triton_compile.cases() if case.name == name)
    usage = triton_compile.usage_of(case, target)
    assert triton_compile.failure(case, target, usage) is None
    assert 0 < usage.registers <= 255


def test_a_spill_is_a_failure() -> None:
    case = triton_compile.cases()[0]
    assert "spilled" in (triton_compile.failure(case, 80, triton_compile.Usage(255, 8, 8, 0)) or "")
    assert "shared" in (triton_compile.failure(case, 75, triton_compile.Usage(32, 0, 0, 80_000)) or "")
    assert triton_compile.failure(case, 90, triton_compile.Usage(32, 0, 0, 80_000)) is None


def test_every_kernel_is_among_the_cases() -> None:
    from triton.runtime.jit import JITFunction

    from mixq.kernels.triton import activations, attention, dequantize, experts, linears, prefill, router

    kernels = {
        name
        for module in (activations, attention, dequantize, experts, linears, prefill, router)
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }
    assert kernels == {case.kernel.__name__ for case in triton_compile.cases()}
