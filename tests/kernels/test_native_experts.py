"""A layer's experts in one call, against the reference, on every instruction set here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixq.kernels import native_library, reference
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.reference import Expert
from tests.kernels.random_weights import (
    ISAS,
    generator,
    guarded_memory,
    kernels_of,
    map_tensors,
    random_weight,
    relative,
)

pytestmark = pytest.mark.skipif(native_library.library() is None, reason="no native kernels here")

KINDS = ("bf16", "nl4:16", "nl4:32", "w4:32:f16", "w8:64:bf16")


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return kernels_of(request.param, threads=2)


def random_experts(kind: str, E: int, D: int, F: int, seed: int) -> list[Expert]:
    def weight(N: int, K: int, i: int) -> reference.Weight:
        return random_weight(kind, N, K, seed * 100 + i, size=K**-0.5)

    return [(weight(F, D, 3 * e), weight(D, F, 3 * e + 1), weight(F, D, 3 * e + 2)) for e in range(E)]


def random_routing(T: int, E: int, A: int, seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    ids = torch.rand(T, E, generator=g).topk(A).indices
    return ids, torch.rand(T, A, generator=g)


def expected(x: Tensor, experts: list[Expert], ids: Tensor, weights: Tensor) -> Tensor:
    return reference.experts(x, experts, ids, weights, lambda x, w: reference.linear(x, w, integer_rows=len(x)))


LIMIT = 1e-3
"""An activation near the middle of two roundings may fall to either side after one product: a step of 1/254."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 8, 9, 41, 150])
@pytest.mark.parametrize("A", [1, 2])
def test_experts_are_the_references(kernels: NativeKernels, kind: str, T: int, A: int) -> None:
    experts = random_experts(kind, 5, 192, 320, seed=T)
    ids, weights = random_routing(T, 5, A, seed=A)
    x = torch.randn(T, 192, generator=generator(T))
    out = kernels.experts(x, experts, ids, weights)
    assert relative(out, expected(x, experts, ids, weights)) < LIMIT
    exact = reference.experts(x, experts, ids, weights, lambda x, w: reference.linear(x, w, exact=True))
    assert relative(out, exact) < 0.02


@pytest.mark.parametrize("T", [1, 7, 33, 300])
def test_all_tokens_choose_the_same_expert(kernels: NativeKernels, T: int) -> None:
    experts = random_experts("nl4:32", 8, 64, 96, seed=1)
    x = torch.randn(T, 64, generator=generator(1))
    for e in (0, 7):
        ids, weights = torch.full((T, 1), e), torch.ones(T, 1)
        out = kernels.experts(x, experts, ids, weights)
        assert relative(out, expected(x, experts, ids, weights)) < LIMIT


@pytest.mark.parametrize("plain", [None, 0, 1])
def test_more_tokens_than_are_taken_at_once(kernels: NativeKernels, plain: int | None) -> None:
    """With a matrix that is not quantized, the kernels of few rows take them, in parts."""
    experts = random_experts("nl4:32", 2, 64, 96, seed=10)
    if plain is not None:
        dense = experts[0][plain].dequantize().bfloat16()
        experts[0] = tuple(dense if i == plain else weight for i, weight in enumerate(experts[0]))
    x = torch.randn(600, 64, generator=generator(10))
    ids, weights = torch.zeros(600, 1, dtype=torch.int64), torch.ones(600, 1)
    out = kernels.experts(x, experts, ids, weights)
    exact = reference.experts(x, experts, ids, weights, lambda x, w: reference.linear(x, w, exact=True))
    assert relative(out, exact) < 0.02
    few = torch.cat([kernels.experts(x[t : t + 8], experts, ids[t : t + 8], weights[t : t + 8]) for t in (0, 200, 592)])
    assert torch.equal(few, torch.cat([out[:8], out[200:208], out[592:]]))


def test_all_tokens_choose_different_experts(kernels: NativeKernels) -> None:
    experts = random_experts("nl4:32", 16, 64, 96, seed=2)
    x, weights = torch.randn(8, 64, generator=generator(2)), torch.rand(8, 2)
    ids = torch.arange(16).view(8, 2)
    assert relative(kernels.experts(x, experts, ids, weights), expected(x, experts, ids, weights)) < LIMIT


def test_an_expert_is_the_composition_of_products(kernels: NativeKernels) -> None:
    """To the bit but for SiLU: the same products, one of them with other rows beside it."""
    ((w1, w2, w3),) = experts = random_experts("nl4:32", 1, 96, 160, seed=3)
    x = torch.randn(3, 96, generator=generator(3))
    hidden = reference.silu_mul(kernels.linear(x, w1), kernels.linear(x, w3))
    out = kernels.experts(x, experts, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    assert relative(out, kernels.linear(hidden, w2)) < 1e-3


def test_kinds_may_differ_within_a_layer(kernels: NativeKernels) -> None:
    kinds = ("nl4:32", "w8:64:bf16", "bf16", "w4:64:f16", "nl4:16")
    experts = [random_experts(kind, 1, 128, 192, seed=i)[0] for i, kind in enumerate(kinds)]
    mixed = [(experts[i][0], experts[i - 1][1], experts[i - 2][2]) for i in range(5)]
    x = torch.randn(6, 128, generator=generator(4))
    ids, weights = random_routing(6, 5, 2, seed=4)
    assert relative(kernels.experts(x, mixed, ids, weights), expected(x, mixed, ids, weights)) < LIMIT


@pytest.mark.parametrize("isa", ISAS)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 70),
    st.integers(1, 8),
)
@settings(max_examples=15, deadline=None)
def test_any_shape(isa: str, seed: int, kind: str, E: int, d: int, f: int, T: int, threads: int) -> None:
    kernels, seed, unit = kernels_of(isa, threads), seed // 200, 64 if kind == "w8:64:bf16" else 32
    A = 1 + seed % min(E, 4)
    experts = random_experts(kind, E, d * unit, f * unit, seed)
    ids, weights = random_routing(T, E, A, seed)
    x = torch.randn(T, d * unit, generator=generator(seed))
    out = kernels.experts(x, experts, ids, weights)
    assert relative(out, expected(x, experts, ids, weights)) < 3e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokens_bits_depend_neither_on_the_others_nor_on_threads(kernels: NativeKernels, kind: str) -> None:
    experts = random_experts(kind, 5, 128, 192, seed=5)
    T = 64
    ids, weights = random_routing(T, 5, 2, seed=5)
    x = torch.randn(T, 128, generator=generator(5))
    alone = torch.cat([kernels.experts(x[t : t + 1], experts, ids[t : t + 1], weights[t : t + 1]) for t in range(T)])
    for rows in (2, 3, 8, T):
        assert torch.equal(kernels.experts(x[:rows], experts, ids[:rows], weights[:rows]), alone[:rows])
    back = torch.arange(T - 1, -1, -1)
    assert torch.equal(kernels.experts(x[back], experts, ids[back], weights[back]), alone[back])
    for threads in (1, 3, 5, 8):
        assert torch.equal(kernels_of(kernels.name, threads).experts(x, experts, ids, weights), alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("T", [1, 5, 70])
def test_what_is_not_finite_stays_with_its_token(kernels: NativeKernels, kind: str, bad: float, T: int) -> None:
    experts = random_experts(kind, 2, 64, 128, seed=6)
    ids, weights = random_routing(T, 2, 1, seed=6)
    x = torch.randn(T, 64, generator=generator(6))
    clean = kernels.experts(x, experts, ids, weights)
    x[T // 2, 40] = bad
    out = kernels.experts(x, experts, ids, weights)
    others = [t for t in range(T) if t != T // 2]
    assert not out[T // 2].isfinite().all()
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 3, 40])
def test_nothing_beside_the_weights_is_read(kernels: NativeKernels, kind: str, T: int) -> None:
    experts = random_experts(kind, 2, 192, 64, seed=7)
    ids, weights = random_routing(T, 2, 1, seed=7)
    x = torch.randn(T, 192, generator=generator(7))
    with guarded_memory() as memory:
        moved = [tuple(map_tensors(weight, memory.at_end) for weight in expert) for expert in experts]
        out = kernels.experts(memory.at_end(x), moved, memory.at_end(ids), memory.at_end(weights))
        assert torch.equal(out, kernels.experts(x, experts, ids, weights))


@pytest.mark.parametrize("T", [2, 40])
def test_weights_that_are_not_taken_go_to_the_reference(kernels: NativeKernels, T: int) -> None:
    experts = [tuple(weight.half() for weight in expert) for expert in random_experts("bf16", 3, 64, 96, seed=8)]
    ids, weights = random_routing(T, 3, 2, seed=8)
    x = torch.randn(T, 64, generator=generator(8))
    assert torch.equal(
        kernels.experts(x, experts, ids, weights),
        reference.experts(x, experts, ids, weights, reference.linear),
    )


def test_extreme_activations_of_silu(kernels: NativeKernels) -> None:
    """Gates far beyond where exp overflows."""
    experts = random_experts("bf16", 1, 32, 64, seed=9)
    ids, weights = torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1)
    for size in (1e-20, 1e-3, 30.0, 1e4, 1e12):
        x = torch.randn(4, 32, generator=generator(9)) * size
        out = kernels.experts(x, experts, ids, weights)
        assert bool(out.isfinite().all())
        assert relative(out, expected(x, experts, ids, weights)) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 5, 33, 150])
def test_experts_computed_in_two_places_sum_to_the_same_bits(kernels: NativeKernels, kind: str, T: int) -> None:
    """A negative id is computed elsewhere: what an expert cache computes here and there adds up to the whole."""
    E, A, D, F = 5, 2, 128, 192
    experts = random_experts(kind, E, D, F, seed=T)
    ids, weights = random_routing(T, E, A, seed=T)
    x = torch.randn(T, D, generator=generator(T))
    for here in ([0], [1, 3], [0, 1, 2, 3, 4], []):
        is_here = torch.isin(ids, torch.tensor(here, dtype=torch.int64))
        parts = [kernels.experts(x, experts, ids.where(mask, -1), weights) for mask in (is_here, ~is_here)]
        assert torch.equal(parts[0] + parts[1], kernels.experts(x, experts, ids, weights)), here
        distance = relative(parts[0], expected(x, experts, ids.where(is_here, -1), weights))
        assert distance <= LIMIT
