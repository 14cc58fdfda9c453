"""Rotary embedding with the write into the cache, attention of single rows and of chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixq.kernels import reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.triton import attention
from tests.kernels.random_weights import generator, relative
from tests.kernels.triton.interpreted import kernels

DTYPES = [torch.bfloat16, torch.int8, torch.float32]
CLOSE = 2e-6


def empty_cache(KV: int, capacity: int, C: int, dtype: torch.dtype) -> KVLayer:
    """Return a cache full of what nobody may read."""
    data = [torch.full((KV, capacity, C), 77, dtype=dtype) for _ in "kv"]
    scales = [torch.full((KV, capacity), 1e30) for _ in "kv"] if dtype == torch.int8 else []
    return KVLayer(*data, *scales)


def filled_cache(KV: int, capacity: int, C: int, dtype: torch.dtype, length: int, seed: int) -> KVLayer:
    kv, g = empty_cache(KV, capacity, C, dtype), generator(seed)
    kv.write(torch.randn(length, KV, C, generator=g) * 2, torch.randn(length, KV, C, generator=g), 0)
    return kv


def angles(positions: int, C: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(positions)[:, None] * 1e4 ** -(torch.arange(0, C, 2) / C)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "KV", "C"), [(1, 4, 2, 16), (3, 6, 3, 24), (2, 2, 1, 6)])
@pytest.mark.parametrize("on_device", [False, True])
def test_rotary_append(dtype: torch.dtype, T: int, H: int, KV: int, C: int, on_device: bool) -> None:
    g, position = generator(C), 5
    q, k, v = (torch.randn(T, heads, C, generator=g) for heads in (H, KV, KV))
    k[0, 0] = 0
    cos, sin = angles(16, C)
    rows = slice(position, position + T)
    right, ours = empty_cache(KV, 12, C, dtype), empty_cache(KV, 12, C, dtype)
    rotated = reference.rotary_append(q, k, v, cos[rows], sin[rows], right, position)
    if on_device:
        answer = kernels().rotary_append(q, k, v, cos, sin, ours, torch.tensor([position]))
    else:
        answer = kernels().rotary_append(q, k, v, cos[rows], sin[rows], ours, position)
    torch.testing.assert_close(answer, rotated, rtol=1e-6, atol=1e-6)
    for mine, theirs in ((ours.keys, right.keys), (ours.values, right.values)):
        different = (mine.float() - theirs.float()).abs()
        assert (different > 0).float().mean() < 0.01, "a rounding may fall otherwise after another order of products"
        assert different.max() <= (1 if dtype == torch.int8 else 2e-2)
    if right.key_scale is not None and ours.key_scale is not None:
        torch.testing.assert_close(ours.key_scale, right.key_scale, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.value_scale, right.value_scale, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_values_are_stored_with_the_references_bits(dtype: torch.dtype) -> None:
    g = generator(1)
    v = torch.randn(4, 2, 32, generator=g) * torch.logspace(-40, 30, 4)[:, None, None]
    k = v.clone()
    v[1, 1, 3] = float("nan")
    right, ours = empty_cache(2, 8, 32, dtype), empty_cache(2, 8, 32, dtype)
    right.write(k, v, 2)
    kernels().rotary_append(torch.zeros(4, 2, 32), k, v, torch.ones(4, 16), torch.zeros(4, 16), ours, 2)
    for mine, theirs in zip(ours.read(2, 6), right.read(2, 6), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.keys[:, :2], right.keys[:, :2]), "other positions are left alone"
    assert torch.equal(ours.keys[:, 6:], right.keys[:, 6:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "KV", "C"), [(8, 2, 32), (3, 3, 24), (20, 1, 16)])
@pytest.mark.parametrize("position", [0, 130, 300])
def test_attention_rows(dtype: torch.dtype, H: int, KV: int, C: int, position: int) -> None:
    T = 2
    kv = filled_cache(KV, 330, C, dtype, position + T, seed=position)
    q = torch.randn(T, H, C, generator=generator(H)) * 2
    right = reference.attention_rows(q, kv, position, None)
    assert relative(kernels().attention_rows(q, kv, position, None), right) < CLOSE


@pytest.mark.parametrize("window", [1, 50, 128, 200, 1000])
@pytest.mark.parametrize("on_device", [False, True])
def test_sliding_window(window: int, on_device: bool) -> None:
    kv = filled_cache(2, 320, 16, torch.bfloat16, 290, seed=window)
    q = torch.randn(3, 4, 16, generator=generator(2))
    right = reference.attention_rows(q, kv, 287, window)
    position = torch.tensor([287], dtype=torch.int32) if on_device else 287
    assert relative(kernels().attention_rows(q, kv, position, window), right) < CLOSE


def test_a_rows_bits_depend_neither_on_other_rows_nor_on_where_the_position_stands() -> None:
    kv = filled_cache(2, 400, 16, torch.bfloat16, 270, seed=3)
    q = torch.randn(8, 4, 16, generator=generator(3))
    together = kernels().attention_rows(q, kv, 260, None)
    for t in (0, 5):
        assert torch.equal(kernels().attention_rows(q[t : t + 1], kv, 260 + t, None)[0], together[t])
        at = torch.tensor([260 + t])
        assert torch.equal(kernels().attention_rows(q[t : t + 1], kv, at, None)[0], together[t])


def test_large_scores_do_not_overflow() -> None:
    kv = filled_cache(1, 64, 16, torch.float32, 40, seed=4)
    kv.keys.mul_(100)
    q = torch.randn(1, 2, 16, generator=generator(4)) * 100
    assert relative(kernels().attention_rows(q, kv, 39, None), reference.attention_rows(q, kv, 39, None)) < 1e-5


@pytest.mark.parametrize(("position", "T", "window", "splits"), [
    (0, 1, None, 1), (127, 1, None, 1), (128, 1, None, 2), (255, 2, None, 3), (1000, 1, 100, 2), (50, 1, 100, 1),
])  # fmt: skip
def test_a_launch_has_the_splits_that_positions_need(position: int, T: int, window: int | None, splits: int) -> None:
    assert attention.splits(position, T, 4096, window) == splits
    assert attention.splits(torch.tensor([position]), T, 4096, window) == (32 if window is None else 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("position", "window"), [(0, None), (13, None), (13, 9), (0, 40), (0, 5)])
def test_attention_of_a_chunk(dtype: torch.dtype, position: int, window: int | None) -> None:
    kv = filled_cache(2, 40, 16, dtype, position + 17, seed=5)
    q = torch.randn(17, 6, 16, generator=generator(5))
    right = reference.attention_prefill(q, kv, position, window)
    assert relative(kernels().attention_prefill(q, kv, position, window), right) < 1e-2


def test_flash_sees_what_the_mask_lets_see() -> None:
    kv = filled_cache(2, 40, 16, torch.bfloat16, 30, seed=6)
    q = torch.randn(17, 6, 16, generator=generator(6))
    ours = kernels()
    ours._flash = True
    assert relative(ours.attention_prefill(q, kv, 13, None), reference.attention_prefill(q, kv, 13, None)) < 1e-2


def test_a_cache_that_the_kernels_do_not_take_goes_to_torch() -> None:
    wide = filled_cache(2, 40, 32, torch.bfloat16, 30, seed=7)
    kv = KVLayer(wide.keys[..., :16], wide.values[..., :16])
    q = torch.randn(1, 4, 16, generator=generator(7))
    assert torch.equal(kernels().attention_rows(q, kv, 29, None), reference.attention_rows(q, kv, 29, None))
    k = torch.randn(1, 2, 16, generator=generator(8))
    kernels().rotary_append(q, k, k, torch.ones(1, 8), torch.zeros(1, 8), kv, 30)
    assert torch.equal(kv.values[:, 30], k[0].bfloat16())
