"""Products of packed weights with 1-8 rows, and the activations that they read."""

from __future__ import annotations

import pytest
import torch

from mixq.kernels import reference
from mixq.kernels.triton import activations
from tests.kernels.random_weights import KINDS, distance, generator, random_weight, relative
from tests.kernels.triton.interpreted import CPU, kernels

CLOSE = 2e-6


def columns(kind: str) -> int:
    """Return a K that fills neither a step of the loop nor, with groups of 16, a block of activations."""
    return {"bf16": 1000, "nl4:16": 1024 + 48}.get(kind, 1024 + 128)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("T", "N"), [(1, 37), (3, 5)])
def test_linear(kind: str, T: int, N: int) -> None:
    x = torch.randn(T, columns(kind), generator=generator(T))
    x[0, 32:64] = 0
    weight = random_weight(kind, N, x.shape[1], seed=N)
    answer = kernels().linear(x, weight)
    assert distance(answer, reference.linear(x, weight), x, weight) < CLOSE


@pytest.mark.parametrize("kind", ["bf16", "nl4:16", "nl4:64", "w4:128:f16", "w8:32:bf16"])
@pytest.mark.parametrize("size", [1e-18, 1e12])
def test_extreme_sizes(kind: str, size: float) -> None:
    x = torch.randn(1, columns(kind), generator=generator(2)) * size
    x[:, ::7] *= 1e-6
    weight = random_weight(kind, 19, x.shape[1], seed=3, size=1e-3)
    assert distance(kernels().linear(x, weight), reference.linear(x, weight), x, weight) < CLOSE


@pytest.mark.parametrize("kind", ["nl4:32", "w4:32:bf16", "w8:64:f16", "bf16"])
def test_small_and_narrow(kind: str) -> None:
    x = torch.randn(2, 64, generator=generator(4))
    weight = random_weight(kind, 3, 64, seed=4)
    assert distance(kernels().linear(x, weight), reference.linear(x, weight), x, weight) < CLOSE


@pytest.mark.parametrize("kind", ["nl4:32", "w8:128:bf16", "bf16"])
def test_a_rows_bits_do_not_depend_on_the_others(kind: str) -> None:
    x = torch.randn(8, columns(kind), generator=generator(5))
    weight = random_weight(kind, 21, x.shape[1], seed=5)
    together = kernels().linear(x, weight)
    for t in (0, 3, 7):
        assert torch.equal(kernels().linear(x[t : t + 1], weight)[0], together[t])


def test_three_formats_in_one_launch() -> None:
    x = torch.randn(2, 1152, generator=generator(6))
    weights = [random_weight(kind, N, 1152, seed=N) for kind, N in (("nl4:16", 40), ("w8:128:bf16", 17), ("bf16", 9))]
    for answer, weight in zip(kernels().linears(x, weights), weights, strict=True):
        assert distance(answer, reference.linear(x, weight), x, weight) < CLOSE


@pytest.mark.parametrize("count", [2, 4])
def test_other_numbers_of_weights(count: int) -> None:
    x = torch.randn(1, 256, generator=generator(7))
    weights = [random_weight("nl4:32", 10 + 7 * i, 256, seed=i) for i in range(count)]
    answers = kernels().linears(x, weights)
    assert [answer.shape for answer in answers] == [(1, 10 + 7 * i) for i in range(count)]
    for answer, weight in zip(answers, weights, strict=True):
        assert distance(answer, reference.linear(x, weight), x, weight) < CLOSE


@pytest.mark.parametrize("kind", ["nl4:32", "w8:128:f16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(kind: str, bad: float) -> None:
    x = torch.randn(2, 256, generator=generator(8))
    x[1, 100] = bad
    answer = kernels().linear(x, random_weight(kind, 11, 256, seed=8))
    assert answer[0].isfinite().all()
    assert answer[1][torch.arange(11) != 2].isnan().all()


@pytest.mark.parametrize("K", [32, 1000, 2112])
def test_prepared_activations_are_the_references(K: int) -> None:
    x = torch.randn(3, K, generator=generator(K))
    x[1, :32], x[2, 5] = 1e-31, 300.0
    codes, scales = reference.quantize_activations(x)
    prepared = activations.prepare(x)
    KP = codes.shape[1]
    assert torch.equal(prepared.natural.float(), codes)
    assert torch.equal(prepared.scales, scales)
    planes = codes.view(3, KP // 8, 2, 4).transpose(1, 2).reshape(3, KP)
    assert torch.equal(prepared.planes.float(), planes)
    assert torch.equal(prepared.halves[:, :K].view(torch.bfloat16), x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("T", "D"), [(1, 96), (3, 1000), (9, 64)])
def test_rms_norm(dtype: torch.dtype, T: int, D: int) -> None:
    g = generator(D)
    x = torch.randn(T, D, generator=g)
    weight = torch.rand(D, generator=g).to(dtype)
    answer = kernels().rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(answer, reference.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-6)


def test_normed_rows_are_prepared_in_the_same_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = kernels()
    x = ours.rms_norm(torch.randn(2, 96, generator=generator(9)), torch.ones(96), 1e-5)
    weight = random_weight("nl4:32", 7, 96, seed=9)
    apart = ours.linear(x.clone(), weight)
    monkeypatch.setattr(activations, "prepare", None)
    assert torch.equal(ours.linear(x, weight), apart)


def test_weights_that_the_kernels_do_not_take() -> None:
    x = torch.randn(2, 64, generator=generator(10)).bfloat16().float()
    weight = torch.randn(5, 64, generator=generator(11)).bfloat16()
    for other in (weight.half(), weight.float()):
        torch.testing.assert_close(kernels().linear(x, other), reference.linear(x, other), rtol=1e-2, atol=1e-2)
    packed = random_weight("nl4:32", 6, 64, seed=1)
    shifted = torch.empty(6 * 32 + 1, dtype=torch.uint8)[1:].view(6, 32).copy_(packed.tensors["weight_codes"])
    odd = type(packed)(packed.scheme, packed.shape, {**packed.tensors, "weight_codes": shifted}, packed.table)
    answer = kernels().linear(x, odd)
    assert relative(answer, reference.linear(x, odd)) < 3e-2  # bfloat16 instead of int8 activations


def test_it_says_what_it_is() -> None:
    ours = kernels()
    assert (ours.name, ours.exact, ours.device, ours.uses_torch_threads) == ("triton", False, CPU, False)
    assert ours.busy_ns() == 0
