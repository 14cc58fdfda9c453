"""Native products against the reference, over kinds of weights, sizes and extremes, on every instruction set here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixq.formats import nf4
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.kernels import native_library, reference
from mixq.kernels.native_kernels import NativeKernels
from tests.kernels.random_weights import (
    ISAS,
    KINDS,
    ONE_OF_EACH,
    distance,
    generator,
    group_of,
    kernels_of,
    random_weight,
    relative,
)

pytestmark = pytest.mark.skipif(native_library.library() is None, reason="no native kernels here")


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return kernels_of(request.param, threads=2)


def off_the_reference(x: Tensor, weight: reference.Weight, kernels: NativeKernels) -> float:
    return distance(kernels.linear(x, weight), reference.linear(x, weight, integer_rows=len(x)), x, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 3, 5, 11, 33])
def test_products_are_the_references(kernels: NativeKernels, kind: str, groups: int) -> None:
    """K from one group up, most of them no multiples of a vector or a chunk; N odd; 1 to 5 rows."""
    K = groups * max(group_of(kind), 7)
    g = generator(groups)
    for N, T in ((1, 1), (7, 2), (70, 3), (33, 4), (18, 5), (5, 8)):
        weight = random_weight(kind, N, K, seed=groups)
        x = torch.randn(T, K, generator=g)
        assert off_the_reference(x, weight, kernels) < 1e-5, (N, T)


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows(kernels: NativeKernels, kind: str) -> None:
    K = 4096 + group_of(kind)
    weight = random_weight(kind, 37, K, seed=1)
    x = torch.randn(3, K, generator=generator(1))
    assert off_the_reference(x, weight, kernels) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [9, 32, 33, 64])
def test_many_rows(kernels: NativeKernels, kind: str, rows: int) -> None:
    K = 3 * group_of(kind) if group_of(kind) > 1 else 151
    weight = random_weight(kind, 51, K, seed=rows)
    x = torch.randn(rows, K, generator=generator(rows))
    assert off_the_reference(x, weight, kernels) < 1e-5


@pytest.mark.parametrize("rows", [41, 150])
def test_many_rows_of_unquantized_weights_through_torch(rows: int) -> None:
    """As on a CPU with bfloat16 products: the reference's, rounded to bfloat16, which takes 1/256 at most."""
    kernels = NativeKernels(2)
    kernels._torch_rows = 32
    weight = random_weight("bf16", 51, 151, seed=rows)
    x = torch.randn(rows, 151, generator=generator(rows))
    for out in (kernels.linear(x, weight), kernels.linears(x, [weight, weight])[1]):
        assert relative(out, reference.linear(x, weight)) < 1 / 256


@pytest.mark.parametrize("isa", ISAS)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 64),
    st.integers(1, 8),
)
@settings(max_examples=25, deadline=None)
def test_any_shape(isa: str, seed: int, kind: str, N: int, groups: int, T: int, threads: int) -> None:
    kernels, K = kernels_of(isa, threads), groups * group_of(kind)
    weight = random_weight(kind, N, K, seed)
    x = torch.randn(T, K, generator=generator(seed))
    assert off_the_reference(x, weight, kernels) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [4, 40])
def test_rounding_of_activations_costs_little(kernels: NativeKernels, kind: str, rows: int) -> None:
    """Within 1 % of float32 for Gaussian activations, 1.5 % for those between SwiGLU's matrices."""
    g, weight = generator(2), random_weight(kind, 64, 1920, seed=2)
    gaussian, gate, up = torch.randn(3, rows, 1920, generator=g)
    for x, limit in ((gaussian, 0.01), (reference.silu_mul(gate, up), 0.015)):
        out, exact = kernels.linear(x, weight), reference.linear(x, weight, exact=True)
        for t in range(rows):
            assert relative(out[t], exact[t]) < limit


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_extreme_activations(kernels: NativeKernels, kind: str, rows: int, size: float) -> None:
    weight = random_weight(kind, 21, 384, seed=3)
    x = torch.randn(rows, 384, generator=generator(3)) * size
    out = kernels.linear(x, weight)
    assert bool(out.isfinite().all())
    assert distance(out, reference.linear(x, weight, integer_rows=len(x)), x, weight) < 1e-5


@pytest.mark.parametrize("kind", ["bf16", "nl4:16", "nl4:64", "w4:32:bf16", "w8:64:bf16"])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_extreme_weights(kernels: NativeKernels, kind: str, rows: int) -> None:
    for size in (1e-30, 1e25):
        weight = random_weight(kind, 21, 384, seed=4, size=size)
        x = torch.randn(rows, 384, generator=generator(4))
        assert off_the_reference(x, weight, kernels) < 1e-5


@pytest.mark.parametrize("kind", ["w4:32:f16", "w8:32:f16"])
@pytest.mark.parametrize("rows", [2, 40])
def test_every_kind_of_float16_scale(kernels: NativeKernels, kind: str, rows: int) -> None:
    """Denormals, zeros of both signs, the largest and the smallest normal one."""
    weight = random_weight(kind, 6, 64, seed=5)
    assert isinstance(weight, PackedLinear)
    bits = torch.tensor([1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF, 0, 0x8000, 0x3C00, 0xBC00, 0x83FF, 0x5555])
    weight.tensors["weight_scale"].copy_(bits.to(torch.int16).view(torch.float16).view(6, 2))
    x = torch.randn(rows, 64, generator=generator(5))
    out, expected = kernels.linear(x, weight), reference.linear(x, weight, integer_rows=len(x))
    for n in range(6):
        assert relative(out[:, n], expected[:, n]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_zeros_give_zeros(kernels: NativeKernels, kind: str, rows: int) -> None:
    weight = random_weight(kind, 13, 256, seed=6)
    x = torch.randn(rows, 256, generator=generator(6))
    x[0] = 0
    out = kernels.linear(x, weight)
    assert not out[0].any()
    assert not out[:, 2].any()  # random_weight's row of zeros
    assert not kernels.linear(torch.full((rows, 256), -0.0), weight).any()


def test_the_largest_codes_against_the_largest_activations_are_exact(kernels: NativeKernels) -> None:
    """Sums of pairs in 16 bits would saturate: 2 * 128 * 127 does not fit."""
    w8 = random_weight("w8:128:bf16", 2, 256, seed=7)
    nl4 = random_weight("nl4:32:lowest", 2, 256, seed=7)
    assert isinstance(w8, PackedLinear)
    assert isinstance(nl4, PackedLinear)
    for code in (0, -1):  # bytes 0x00 and 0xff
        for weight, codes in ((w8, "weight_packed"), (nl4, "weight_codes")):
            weight.tensors[codes].fill_(code if weight is w8 else code & 0xFF)
            weight.tensors["weight_scale"].fill_(1)
        nl4.tensors["weight_row_scale"].fill_(1)
        for sign in (1.0, -1.0):
            x = torch.full((3, 256), 127.0 * sign)
            x[1, ::2] *= -1
            for weight in (w8, nl4):
                assert torch.equal(kernels.linear(x, weight), x @ weight.dequantize().T)


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_several_matrices_in_one_call(kernels: NativeKernels, rows: int) -> None:
    """As q, k and v: kinds and heights differ."""
    weights = [
        random_weight(kind, N, 384, seed=N)
        for kind, N in (("nl4:16", 70), ("w8:128:bf16", 3), ("bf16", 33), ("w4:64:f16", 1))
    ]
    x = torch.randn(rows, 384, generator=generator(8))
    for out, weight in zip(kernels.linears(x, weights), weights, strict=True):
        assert torch.equal(out, kernels.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("D", [1, 16, 67, 1029])
def test_router_scores_are_float32(kernels: NativeKernels, dtype: torch.dtype, rows: int, D: int) -> None:
    g = generator(D)
    weight, x = torch.randn(8, D, generator=g).to(dtype), torch.randn(rows, D, generator=g)
    assert distance(kernels.router_logits(x, weight), x.double() @ weight.double().T, x, weight) < 2e-6


@pytest.mark.parametrize("D", [1, 15, 16, 70, 4096])
def test_rms_norm(kernels: NativeKernels, D: int) -> None:
    g = generator(D)
    weight = torch.randn(D, generator=g).bfloat16()
    for size in (0.0, 1e-15, 1.0, 1e15):
        x = torch.randn(5, D, generator=g) * size
        assert relative(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)) < 1e-6
    half = weight.half()
    assert torch.equal(kernels.rms_norm(x, half, 1e-5), reference.rms_norm(x, half, 1e-5))


@pytest.mark.parametrize("rows", [3, 40])
def test_what_the_kernels_do_not_take_goes_to_the_reference(kernels: NativeKernels, rows: int) -> None:
    dense = torch.randn(20, 128, generator=generator(9))
    packed = PackedLinear(Scheme("nf4", 64), (20, 128), nf4.quantize(dense, 64, torch.bfloat16))
    strided = dense.bfloat16().T.contiguous().T
    x = torch.randn(rows, 128, generator=generator(10))
    for weight in (dense, dense.half(), strided, packed):
        assert native_library.matrix_of(weight) is None
        expected = reference.linear(x, weight)
        assert torch.equal(kernels.linear(x, weight), expected)
        beside = random_weight("nl4:32", 20, 128, seed=11)
        outs = kernels.linears(x, [weight, beside])
        assert torch.equal(outs[0], expected)
        assert torch.equal(outs[1], kernels.linear(x, beside))


def test_activations_need_not_be_contiguous(kernels: NativeKernels) -> None:
    weight = random_weight("nl4:32", 20, 128, seed=12)
    wide = torch.randn(128, 6, generator=generator(12))
    assert torch.equal(kernels.linear(wide.T, weight), kernels.linear(wide.T.contiguous(), weight))
    assert kernels.linear(wide.T[:0], weight).shape == (0, 20)
