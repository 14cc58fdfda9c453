"""What a row's bits depend on: the row and the weights, and nothing else. What is not finite stays in its row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.reference import Weight
from tests.kernels.random_weights import (
    ISAS,
    KINDS,
    ONE_OF_EACH,
    GuardedMemory,
    generator,
    group_of,
    guarded_memory,
    kernels_of,
    map_tensors,
    random_weight,
)

pytestmark = pytest.mark.skipif(native_library.library() is None, reason="no native kernels here")


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return kernels_of(request.param, threads=2)


def one_by_one(kernels: NativeKernels, x: Tensor, weight: Weight) -> Tensor:
    return torch.cat([kernels.linear(row, weight) for row in x.split(1)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_do_not_depend_on_the_other_rows(kernels: NativeKernels, kind: str) -> None:
    """Those of a decode step and those of a prompt: the order of a row's sums depends on the weights alone."""
    K = 640 + group_of(kind)
    weight, x = random_weight(kind, 45, K, seed=1), torch.randn(64, K, generator=generator(1)) * 10
    alone = one_by_one(kernels, x, weight)
    for rows in (2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 64):
        assert torch.equal(kernels.linear(x[:rows], weight), alone[:rows]), rows
        assert torch.equal(kernels.linear(x[:rows].flip(0), weight), alone[:rows].flip(0)), rows
    assert torch.equal(kernels.linear(x[[3, 9, 3]], weight), alone[[3, 9, 3]])


@pytest.mark.skipif("avx2" not in ISAS, reason="not an x86 CPU")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bf16"])
@pytest.mark.parametrize("groups", [1, 3, 16, 33])
def test_every_instruction_set_of_x86_gives_the_same_bits(kind: str, groups: int) -> None:
    """Rows of a turn and a part, of less, and of several turns."""
    K = groups * group_of(kind)
    weight, x = random_weight(kind, 45, K, seed=groups), torch.randn(40, K, generator=generator(groups))
    wanted = kernels_of("avx2").linear(x, weight)
    for isa in set(ISAS) - {"portable"}:
        assert torch.equal(kernels_of(isa).linear(x, weight), wanted), isa
        assert torch.equal(one_by_one(kernels_of(isa), x, weight), wanted), isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_bits_do_not_depend_on_threads(isa: str, kind: str, rows: int) -> None:
    weight, x = random_weight(kind, 300, 1024, seed=3), torch.randn(rows, 1024, generator=generator(3))
    alone = kernels_of(isa, 1).linear(x, weight)
    for threads in range(2, 9):
        for _ in range(2):
            assert torch.equal(kernels_of(isa, threads).linear(x, weight), alone), threads


@pytest.mark.parametrize("kind", KINDS)
def test_an_outputs_bits_do_not_depend_on_its_place(kernels: NativeKernels, kind: str) -> None:
    """Blocks of rows and the rows left over are summed alike: here each output is the same."""
    K = 160 if group_of(kind) < 64 else 384
    weight = random_weight(kind, 23, K, seed=4)
    same = map_tensors(  # all but weight_shape
        weight, lambda tensor: tensor if tensor.dtype == torch.int64 else tensor[:1].expand_as(tensor).contiguous()
    )
    for rows in (1, 2, 3, 4, 9, 40):
        out = kernels.linear(torch.randn(rows, K, generator=generator(rows)), same)
        assert torch.equal(out, out[:, :1].expand_as(out)), rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_what_is_not_finite_reaches_its_row_alone(kernels: NativeKernels, kind: str, bad: float, rows: int) -> None:
    K = 3 * group_of(kind) if group_of(kind) > 1 else 77
    weight = random_weight(kind, 11, K, seed=5)
    if isinstance(weight, PackedLinear):
        weight.tensors["weight_scale"][weight.tensors["weight_scale"] == 0] = 1
    else:
        weight[2] = 1
    x = torch.randn(rows, K, generator=generator(5))
    clean = kernels.linear(x, weight)
    for place in (0, K // 2, K - 1):
        spoilt = x.clone()
        spoilt[rows // 2, place] = bad
        out = kernels.linear(spoilt, weight)
        assert not out[rows // 2].isfinite().any(), place
        others = [t for t in range(rows) if t != rows // 2]
        assert torch.equal(out[others], clean[others]), place


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_router_and_norm_keep_what_is_not_finite_in_its_row(kernels: NativeKernels, bad: float, rows: int) -> None:
    weight, x = torch.randn(8, 70, generator=generator(6)).bfloat16(), torch.randn(rows, 70)
    for call in (
        lambda x: kernels.router_logits(x, weight),
        lambda x: kernels.rms_norm(x, weight[0], 1e-5),
    ):
        clean, spoilt = call(x), x.clone()
        spoilt[0, 33] = bad
        out = call(spoilt)
        assert not out[0].isfinite().all()
        assert torch.equal(out[1:], clean[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["at_end", "at_begin"])
def test_nothing_beside_the_weights_is_read(kernels: NativeKernels, kind: str, place: str) -> None:
    """Each tensor stands before, or after, a page that cannot be read; so do the activations."""
    group = group_of(kind)
    for N, K in ((1, group), (6, 3 * group), (5, 1024 + group)):
        weight = random_weight(kind, N, K, seed=K)
        for rows in (1, 2, 4, 40):
            x = torch.randn(rows, K, generator=generator(K))
            with guarded_memory() as memory:
                out = kernels.linear(getattr(memory, place)(x), moved(weight, memory, place))
                assert torch.equal(out, kernels.linear(x, weight))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_at_odd_addresses(kernels: NativeKernels, kind: str) -> None:
    """A safetensors file's data may begin at any byte."""
    for K in (group_of(kind), 640 + group_of(kind)):
        weight = random_weight(kind, 9, K, seed=K)
        for rows in (1, 3, 40):
            x = torch.randn(rows, K, generator=generator(K))
            with guarded_memory() as memory:
                assert torch.equal(kernels.linear(x, moved(weight, memory, "at_odd_place")), kernels.linear(x, weight))


def moved(weight: Weight, memory: GuardedMemory, place: str) -> Weight:
    return map_tensors(weight, getattr(memory, place))
