"""Many rows: the workspace, products of 16 bits, nf4."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from mixq.formats import nf4
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.kernels import reference
from mixq.kernels.triton import prefill
from mixq.kernels.triton.dequantize import dequantize
from mixq.kernels.triton.weights import Weights
from tests.kernels.random_weights import KINDS, generator, random_weight, relative
from tests.kernels.triton.interpreted import CPU, kernels

PACKED = [kind for kind in KINDS if kind != "bf16"]


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dequantized_weights_are_the_references(kind: str, dtype: torch.dtype) -> None:
    weight = random_weight(kind, 5, 1024 + 128, seed=1)
    matrix = Weights(CPU).matrix(weight)
    assert matrix is not None
    right = weight.dequantize().to(dtype)
    assert torch.equal(dequantize(matrix, 0, torch.empty(5, 1152, dtype=dtype)), right)
    assert torch.equal(dequantize(matrix, 2, torch.empty(3, 1152, dtype=dtype)), right[2:])


@pytest.mark.parametrize("kind", ["bf16", "nl4:32", "w4:64:f16", "w8:128:bf16"])
@pytest.mark.parametrize("workspace", [1, 1 << 25])
def test_many_rows(kind: str, workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "WORKSPACE_WEIGHTS", workspace * 256 * 5)
    x = torch.randn(9, 256, generator=generator(2))
    weight = random_weight(kind, 23, 256, seed=2)
    assert relative(kernels().linear(x, weight), reference.linear(x, weight)) < 1e-5
    assert relative(kernels().linears(x, [weight, weight])[1], reference.linear(x, weight)) < 1e-5


def test_float16_where_there_is_no_bfloat16() -> None:
    ours = kernels()
    ours.dtype = torch.float16
    x = torch.randn(9, 256, generator=generator(3))
    weight = random_weight("nl4:32", 23, 256, seed=3, size=0.1)
    assert relative(ours.linear(x, weight), F.linear(x, weight.dequantize())) < 1e-3


def test_silu_mul() -> None:
    g = generator(4)
    gate, up = torch.randn(3, 700, generator=g) * 9, torch.randn(3, 700, generator=g)
    gate[0, :2] = torch.tensor([-200.0, 200.0])
    right = F.silu(gate) * up
    torch.testing.assert_close(prefill.silu_mul(gate, up), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("T", [1, 12])
def test_nf4(installed: bool, T: int) -> None:
    if installed and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    g = generator(5)
    dense = torch.randn(24, 128, generator=g)
    weight = PackedLinear(Scheme("nf4", 64), (24, 128), nf4.quantize(dense, 64, torch.bfloat16))
    ours = kernels()
    if not installed:
        ours._nf4.installed = False
    x = torch.randn(T, 128, generator=g)
    for _ in range(2):
        assert relative(ours.linear(x, weight), reference.linear(x, weight)) < 4e-3
