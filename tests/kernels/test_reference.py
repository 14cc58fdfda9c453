"""The reference kernels: the format's arithmetic, and bits that depend on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixq.formats import int_groups, nl4
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.kernels import reference as kernels

SCHEMES = ["nl4:16", "nl4:32", "nl4:64", "w4:32", "w4:64", "w4:128", "w8:32", "w8:128"]


def random_packed(scheme_text: str, N: int, K: int, seed: int) -> PackedLinear:
    """Random codes and signed scales; nothing is fitted to any weight."""
    scheme = Scheme.parse(scheme_text)
    print(f"seed {seed}")
    g = torch.Generator().manual_seed(seed)
    groups = (N, K // scheme.group_size)
    if scheme.name == "nl4":
        codes = torch.randint(0, 16, (N, K), generator=g, dtype=torch.uint8)
        scale = torch.randint(-127, 128, groups, generator=g, dtype=torch.int8)
        tensors = nl4.pack(codes, scale, torch.rand(N, generator=g) * 1e-4)
        return PackedLinear(scheme, (N, K), tensors, nl4.table_tensor())
    half = 2 ** (scheme.bits - 1)
    q = torch.randint(-half, half, (N, K), generator=g, dtype=torch.int8)
    return PackedLinear(scheme, (N, K), int_groups.pack(q, torch.randn(groups, generator=g).bfloat16(), scheme.bits))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decode_is_the_product_of_rounded_activations_and_dequantized_weights(scheme: str) -> None:
    weight = random_packed(scheme, 40, 384, seed=1)
    x = torch.randn(5, 384, generator=torch.Generator().manual_seed(2))
    codes, scales = kernels.quantize_activations(x)
    rounded = (codes.view(5, -1, 32) * scales[..., None]).view(5, 384).double()
    expected = rounded @ weight.dequantize().double().T
    assert relative(kernels.linear(x, weight).double(), expected) < 1e-6


@pytest.mark.parametrize("scheme", [*SCHEMES, "dense"])
def test_each_path_stays_near_float32(scheme: str) -> None:
    weight = torch.randn(40, 384).bfloat16() if scheme == "dense" else random_packed(scheme, 40, 384, seed=3)
    x = torch.randn(9, 384, generator=torch.Generator().manual_seed(4))
    exact = kernels.linear(x, weight, exact=True)
    assert relative(kernels.linear(x[:8], weight), exact[:8]) < 0.01
    assert relative(kernels.linear(x, weight), exact) < 0.01


@pytest.mark.parametrize("scheme", [*SCHEMES, "dense"])
def test_a_decode_rows_bits_do_not_depend_on_the_other_rows(scheme: str) -> None:
    weight = torch.randn(40, 384).bfloat16() if scheme == "dense" else random_packed(scheme, 40, 384, seed=5)
    x = torch.randn(8, 384, generator=torch.Generator().manual_seed(6)) * 10
    alone = torch.cat([kernels.linear(row, weight) for row in x.split(1)])
    for count in range(1, 9):
        assert torch.equal(kernels.linear(x[:count], weight), alone[:count])
    assert torch.equal(kernels.linear(x.flip(0), weight), alone.flip(0))


@pytest.mark.parametrize("width", [7, 16, 48, 96, 512])
def test_silu_mul_of_a_decode_row_does_not_depend_on_the_other_rows(width: int) -> None:
    gate, up = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(12)) * 5
    alone = torch.cat([kernels.silu_mul(gate[i : i + 1], up[i : i + 1]) for i in range(8)])
    assert torch.equal(kernels.silu_mul(gate, up), alone)


def test_bits_do_not_depend_on_threads() -> None:
    weight = random_packed("nl4:32", 300, 4096, seed=7)
    x = torch.randn(3, 4096, generator=torch.Generator().manual_seed(8))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernels.linear(x, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-38, 1e-20, 1.0, 1e20, 1e37]), st.integers(1, 70))
@settings(max_examples=50, deadline=None)
def test_activations_round_to_within_half_a_step(seed: int, size: float, K: int) -> None:
    x = torch.randn(2, K, generator=torch.Generator().manual_seed(seed)) * size
    codes, scales = kernels.quantize_activations(x)
    assert codes.abs().max() <= 127
    assert bool(torch.isfinite(scales).all())
    if size >= 1e-20:
        back = (codes.view(2, -1, 32) * scales[..., None]).view(2, -1)[:, :K]
        step = scales.repeat_interleave(32, 1)[:, :K]
        assert bool(((back - x).abs() <= step * 0.501).all())


def test_zero_activations_and_zero_groups_give_zero() -> None:
    weight = random_packed("nl4:32", 8, 64, seed=9)
    assert torch.equal(kernels.linear(torch.zeros(2, 64), weight), torch.zeros(2, 8))
    weight.tensors["weight_scale"].zero_()
    assert torch.equal(kernels.linear(torch.randn(2, 64), weight), torch.zeros(2, 8))


def test_extreme_weight_codes_stay_exact() -> None:
    """A block of the largest codes against the largest activations: 32 * 127 * 128 is below 2**24."""
    q = torch.full((1, 128), -128, dtype=torch.int8)
    weight = PackedLinear(Scheme("w8", 128), (1, 128), int_groups.pack(q, torch.ones(1, 1).bfloat16(), 8))
    x = torch.full((1, 128), 127.0)
    assert kernels.linear(x, weight).item() == -128 * 127 * 128


def test_attention_row_equals_the_last_row_of_a_chunk() -> None:
    g = torch.Generator().manual_seed(10)
    keys, values = torch.randn(2, 2, 30, 16, generator=g)
    q = torch.randn(5, 6, 16, generator=g)
    chunk = kernels.attention_chunk(q, keys, values, window=None, exact=True)
    rows = torch.stack([kernels.attention_row(q[i], keys[:, : 26 + i], values[:, : 26 + i]) for i in range(5)])
    assert relative(rows, chunk) < 1e-6


def test_sliding_window_hides_older_positions() -> None:
    g = torch.Generator().manual_seed(11)
    keys, values = torch.randn(2, 2, 30, 16, generator=g)
    q = torch.randn(1, 6, 16, generator=g)
    chunk = kernels.attention_chunk(q, keys, values, window=4, exact=True)
    assert relative(kernels.attention_row(q[0], keys[:, 26:], values[:, 26:]), chunk[0]) < 1e-6
