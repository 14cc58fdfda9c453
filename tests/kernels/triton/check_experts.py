"""A layer's experts through the slot table, for few and for many rows; the router."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from mixq.kernels import reference
from mixq.kernels.reference import Expert
from mixq.kernels.triton import router
from mixq.kernels.triton.experts import weighted_sum
from tests.kernels.random_weights import generator, random_weight, relative
from tests.kernels.triton.interpreted import CPU, kernels

D, F = 64, 96


def random_experts(kinds: tuple[str, str, str], E: int, seed: int, D: int = D, F: int = F) -> list[Expert]:
    def weight(i: int, N: int, K: int) -> reference.Weight:
        return random_weight(kinds[i % 3], N, K, seed * 100 + i, size=K**-0.5)

    return [(weight(3 * e, F, D), weight(3 * e + 1, D, F), weight(3 * e + 2, F, D)) for e in range(E)]


def random_routing(T: int, E: int, A: int, seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return torch.rand(T, E, generator=g).topk(A).indices, torch.rand(T, A, generator=g)


def expected(x: Tensor, experts: list[Expert], ids: Tensor, weights: Tensor) -> Tensor:
    return reference.experts(x, experts, ids, weights, reference.linear)


@pytest.mark.parametrize("kind", ["nl4:16", "nl4:32", "w4:32:f16", "w4:32:bf16", "w8:32:bf16", "bf16"])
@pytest.mark.parametrize(("T", "A"), [(1, 2), (3, 2), (2, 3)])
def test_few_rows(kind: str, T: int, A: int) -> None:
    experts = random_experts((kind,) * 3, 4, seed=T)
    x = torch.randn(T, D, generator=generator(T))
    ids, weights = random_routing(T, 4, A, seed=A)
    answer = kernels().experts(x, experts, ids, weights)
    assert relative(answer, expected(x, experts, ids, weights)) < 1e-3


def test_each_matrix_in_a_format_of_its_own_and_a_width_that_is_no_block() -> None:
    experts = random_experts(("nl4:16", "nl4:16", "w4:32:f16"), 3, seed=7, D=64, F=80)
    x = torch.randn(2, 64, generator=generator(7))
    ids, weights = random_routing(2, 3, 2, seed=7)
    assert relative(kernels().experts(x, experts, ids, weights), expected(x, experts, ids, weights)) < 1e-3


@pytest.mark.parametrize("T", [1, 4, 12])
def test_experts_that_are_elsewhere_add_nothing_and_are_not_touched(T: int) -> None:
    experts = random_experts(("nl4:32",) * 3, 4, seed=8)
    x = torch.randn(T, D, generator=generator(8))
    ids, weights = random_routing(T, 4, 2, seed=8)
    ids[::2, 0], ids[-1] = -1, -1
    x[-1] = float("nan")  # nobody computes it here
    answer = kernels().experts(x, experts, ids, weights)
    assert torch.equal(answer[-1], torch.zeros(D))
    assert relative(answer[:-1], expected(x[:-1], experts, ids[:-1], weights[:-1])) < 4e-3


@pytest.mark.parametrize("kind", ["nl4:32", "bf16"])
def test_a_rows_bits_do_not_depend_on_the_others(kind: str) -> None:
    ours, experts = kernels(), random_experts((kind,) * 3, 4, seed=9)
    x = torch.randn(5, D, generator=generator(9))
    ids, weights = random_routing(5, 4, 3, seed=9)
    together = ours.experts(x, experts, ids, weights)
    for rows in (slice(0, 1), slice(4, 5), slice(1, 3)):
        assert torch.equal(ours.experts(x[rows], experts, ids[rows], weights[rows]), together[rows])


def test_a_rows_bits_do_not_depend_on_the_slots() -> None:
    ours, experts = kernels(), random_experts(("nl4:32",) * 3, 4, seed=10)
    x = torch.randn(1, D, generator=generator(10))
    ids, weights = random_routing(1, 4, 3, seed=10)
    where = torch.tensor([2, 0, 3, 1])  # the slot of each expert
    moved = [experts[int((where == slot).nonzero())] for slot in range(4)]
    assert torch.equal(ours.experts(x, moved, where[ids], weights), ours.experts(x, experts, ids, weights))


def test_a_list_in_another_lists_place_is_bound_anew() -> None:
    ours = kernels()
    x = torch.randn(1, D, generator=generator(11))
    ids, weights = torch.tensor([[0, 1]]), torch.ones(1, 2)
    for seed in range(12, 15):
        experts = random_experts(("nl4:32",) * 3, 2, seed=seed)
        assert relative(ours.experts(x, experts, ids, weights), expected(x, experts, ids, weights)) < 1e-3
        del experts
        gc.collect()
    same = random_experts(("nl4:32",) * 3, 2, seed=15)
    for seed in (16, 17):  # another list at the same address, as it were
        assert relative(ours.experts(x, same, ids, weights), expected(x, same, ids, weights)) < 1e-3
        same[:] = random_experts(("nl4:32",) * 3, 2, seed=seed)
    assert len(ours._weights._slots) == 1, "lists that are gone are forgotten"


def test_new_contents_of_a_slot_are_seen() -> None:
    ours, experts = kernels(), random_experts(("nl4:32",) * 3, 2, seed=19)
    x = torch.randn(1, D, generator=generator(19))
    ids, weights = torch.tensor([[1, 0]]), torch.ones(1, 2)
    ours.experts(x, experts, ids, weights)
    for mine, other in zip(experts[1], random_experts(("nl4:32",) * 3, 1, seed=20)[0], strict=True):
        for name, tensor in mine.tensors.items():
            tensor.copy_(other.tensors[name])
    assert relative(ours.experts(x, experts, ids, weights), expected(x, experts, ids, weights)) < 1e-3


@pytest.mark.parametrize("kind", ["nl4:32", "w4:32:bf16", "w8:32:f16", "bf16"])
def test_many_rows(kind: str) -> None:
    experts = random_experts((kind,) * 3, 2, seed=21)
    x = torch.randn(12, D, generator=generator(21))
    ids, weights = random_routing(12, 2, 2, seed=21)
    ids[3, 1] = -1
    assert relative(kernels().experts(x, experts, ids, weights), expected(x, experts, ids, weights)) < 4e-3


def test_experts_of_different_formats_go_one_by_one() -> None:
    experts = random_experts(("nl4:32",) * 3, 1, seed=22) + random_experts(("w8:32:bf16",) * 3, 1, seed=23)
    x = torch.randn(2, D, generator=generator(22))
    ids, weights = random_routing(2, 2, 2, seed=22)
    assert relative(kernels().experts(x, experts, ids, weights), expected(x, experts, ids, weights)) < 1e-3


def test_the_sum_leaves_out_what_is_no_number_where_the_id_is_negative() -> None:
    answers = torch.randn(2, 3, 1500, generator=generator(24))
    answers[0, 1] = float("nan")
    ids = torch.tensor([[0, -1, 2], [1, 2, 0]])
    weights = torch.rand(2, 3, generator=generator(25))
    weights[0, 1] = float("nan")
    total = weighted_sum(answers, ids, weights)
    chosen = torch.where((ids >= 0)[..., None], answers * weights[..., None], 0.0).sum(1)
    torch.testing.assert_close(total, chosen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("E", "A", "D"), [(8, 2, 96), (5, 3, 1100), (1, 1, 64)])
def test_router(dtype: torch.dtype, E: int, A: int, D: int) -> None:
    g = generator(E)
    x = torch.randn(3, D, generator=g)
    gate = (torch.randn(E, D, generator=g) * D**-0.5).to(dtype)
    logits = reference.router_logits(x, gate)
    torch.testing.assert_close(kernels().router_logits(x, gate), logits, rtol=1e-5, atol=1e-5)
    weights, ids = kernels().route(x, gate, A)
    right, right_ids = logits.softmax(-1).topk(A)
    assert torch.equal(ids, right_ids)
    torch.testing.assert_close(weights, right / right.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_equal_experts_are_taken_in_their_order_and_what_is_no_number_stays_in_range() -> None:
    x = torch.ones(2, 64)
    x[1] = float("nan")
    _, _, ids = router.route(x, torch.ones(6, 64, device=CPU), 2)
    assert ids[0].tolist() == [0, 1]
    assert ((ids >= 0) & (ids < 6)).all()
