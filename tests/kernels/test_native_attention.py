"""Native attention and cache writing against the reference, on every instruction set that this CPU has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mixq.kernels import native_library, reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.native_kernels import NativeKernels

pytestmark = pytest.mark.skipif(native_library.library() is None, reason="no native kernels here")

DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "f32": torch.float32}
ISAS = native_library.supported_isas()
BOUND = {"bf16": 1e-5, "int8": 1e-4, "f32": 1e-5}
"""Of the relative L2 difference; with int8, queries and the weights of values are rounded to 16 bits."""


def kernels_of(isa: str, threads: int = 1) -> NativeKernels:
    return NativeKernels(threads, isa=native_library.ISA_NAMES[isa])


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return kernels_of(request.param, threads=2)


def generator(seed: int) -> torch.Generator:
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def empty_layer(kv: str, KV: int, capacity: int, C: int) -> KVLayer:
    shape, dtype = (2, KV, capacity, C), DTYPES[kv]
    data = torch.full(shape, 77, dtype=dtype)
    return KVLayer(*data, *torch.full(shape[:3], 77.0)) if kv == "int8" else KVLayer(*data)


def filled_layer(kv: str, KV: int, capacity: int, C: int, seed: int) -> KVLayer:
    layer, g = empty_layer(kv, KV, capacity, C), generator(seed)
    keys, values = (torch.randn(capacity, KV, C, generator=g) for _ in range(2))
    layer.write(keys, values, 0)
    return layer


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("length", [1, 2, 31, 257, 1000])
def test_rows_attend_as_the_reference_does(kernels: NativeKernels, kv: str, length: int) -> None:
    layer = filled_layer(kv, 2, length + 3, 128, seed=length)
    q = torch.randn(3, 8, 128, generator=generator(1))
    out = kernels.attention_rows(q, layer, length - 1, None)
    assert relative(out, reference.attention_rows(q, layer, length - 1, None)) < BOUND[kv]


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("C", [8, 24, 32, 64, 80, 128, 256])
@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (4, 2), (6, 2), (7, 1), (16, 2)])
def test_head_sizes_and_ratios(kernels: NativeKernels, kv: str, C: int, heads: tuple[int, int]) -> None:
    H, KV = heads
    layer = filled_layer(kv, KV, 101, C, seed=C)
    q = torch.randn(2, H, C, generator=generator(2))
    expected = reference.attention_rows(q, layer, 99, None)
    assert relative(kernels.attention_rows(q, layer, 99, None), expected) < BOUND[kv]


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("window", [1, 7, 64, 500, 512, 513, 5000])
@pytest.mark.parametrize("position", [0, 6, 510, 1025])
def test_windows(kernels: NativeKernels, kv: str, window: int, position: int) -> None:
    layer = filled_layer(kv, 2, position + 4, 64, seed=window)
    q = torch.randn(4, 4, 64, generator=generator(3))
    expected = reference.attention_rows(q, layer, position, window)
    assert relative(kernels.attention_rows(q, layer, position, window), expected) < BOUND[kv]


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-20, 30.0, 3000.0])
def test_scores_from_all_equal_to_one_that_takes_all(kernels: NativeKernels, kv: str, size: float) -> None:
    layer = filled_layer(kv, 2, 700, 64, seed=4)
    # Whole numbers up to 32767 at most: exact in 16 bits, so that large scores have no large errors.
    q = torch.randn(1, 8, 64, generator=generator(5))
    q = (q / q.abs().amax(-1, keepdim=True) * 32767).round() * (size * 1e-4 / 3)
    expected = reference.attention_rows(q, layer, 699, None)
    assert relative(kernels.attention_rows(q, layer, 699, None), expected) < BOUND[kv]


def test_scores_that_rise_and_fall(kernels: NativeKernels) -> None:
    for order in (1, -1):
        layer = filled_layer("f32", 1, 1300, 64, seed=6)
        layer.keys.copy_((torch.arange(1300.0) * order)[None, :, None].expand(1, 1300, 64) / 64)
        q = torch.ones(1, 4, 64)
        expected = reference.attention_rows(q, layer, 1299, None)
        assert relative(kernels.attention_rows(q, layer, 1299, None), expected) < 1e-5


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("where", ["keys", "values", "query"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(kernels: NativeKernels, kv: str, where: str, bad: float) -> None:
    layer, q = filled_layer(kv, 2, 600, 64, seed=7), torch.ones(1, 4, 64)
    of_layer = {"keys": layer.keys, "values": layer.values}
    of_int8 = {"keys": layer.key_scale, "values": layer.value_scale}
    if where == "query":
        q[0, :2, 3] = bad
    elif (scale := of_int8[where]) is not None:
        scale[0, 5] = bad
    else:
        of_layer[where][0, 5, 3] = bad
    out = kernels.attention_rows(q, layer, 599, None)
    if where == "values":
        assert not out[0, :2, 3].isfinite().any()
    else:
        assert out[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()


@pytest.mark.parametrize("length", [64, 1000, 8000])
def test_rounding_to_16_bits_changes_little_beside_an_int8_cache(kernels: NativeKernels, length: int) -> None:
    whole, rounded = (filled_layer(kv, 2, length, 128, seed=21) for kv in ("f32", "int8"))
    q = 2 * torch.randn(1, 8, 128, generator=generator(22))
    of_whole, of_rounded = (reference.attention_rows(q, layer, length - 1, None) for layer in (whole, rounded))
    change = relative(kernels.attention_rows(q, rounded, length - 1, None), of_rounded)
    assert change < relative(of_rounded, of_whole) / 50


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e30])
def test_int8_values_of_any_size(kernels: NativeKernels, size: float) -> None:
    layer, q = filled_layer("int8", 1, 130, 64, seed=19), torch.randn(1, 4, 64, generator=generator(20))
    assert layer.value_scale is not None
    layer.value_scale.mul_(size)
    out, expected = kernels.attention_rows(q, layer, 129, None), reference.attention_rows(q, layer, 129, None)
    assert (out.double() - expected).norm() <= BOUND["int8"] * expected.double().norm() + 1e-37


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("window", [None, 700])
def test_bits_depend_neither_on_threads_nor_on_other_rows(isa: str, kv: str, window: int | None) -> None:
    layer = filled_layer(kv, 2, 2008, 128, seed=8)
    q = torch.randn(8, 8, 128, generator=generator(9))
    one_by_one = torch.cat([kernels_of(isa).attention_rows(q[t : t + 1], layer, 2000 + t, window) for t in range(8)])
    for threads in range(1, 9):
        kernels = kernels_of(isa, threads)
        for _ in range(3):
            assert torch.equal(kernels.attention_rows(q, layer, 2000, window), one_by_one)
        assert torch.equal(kernels.attention_rows(q[3:5], layer, 2003, window), one_by_one[3:5])


def append_both(
    kernels: NativeKernels, kv: str, q: Tensor, k: Tensor, v: Tensor, position: int
) -> tuple[Tensor, Tensor, KVLayer, KVLayer]:
    """Rotate and append with both kernels: rotated queries and layers, native first."""
    T, KV, C = k.shape
    angle = torch.randn(T, C // 2, generator=generator(10)) * 100
    native_layer, layer = (empty_layer(kv, KV, position + T + 2, C) for _ in range(2))
    expected = reference.rotary_append(q, k, v, angle.cos(), angle.sin(), layer, position)
    rotated = kernels.rotary_append(q.clone(), k, v, angle.cos(), angle.sin(), native_layer, position)
    return rotated, expected, native_layer, layer


def parts(layer: KVLayer) -> Sequence[Tensor]:
    scales = [scale for scale in (layer.key_scale, layer.value_scale) if scale is not None]
    return [layer.keys, layer.values, *scales]


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("T", [1, 5, 130])
@pytest.mark.parametrize("C", [8, 64, 128, 256])
def test_rotating_and_writing_give_the_references_bits(kernels: NativeKernels, kv: str, T: int, C: int) -> None:
    g = generator(T + C)
    q, k, v = (torch.randn(T, heads, C, generator=g) * 3 for heads in (6, 3, 3))
    rotated, expected, native_layer, layer = append_both(kernels, kv, q, k, v, position=4)
    assert torch.equal(rotated, expected)
    for got, wanted in zip(parts(native_layer), parts(layer), strict=True):
        assert torch.equal(got, wanted)  # what was not to be written, too


@pytest.mark.parametrize("kv", DTYPES)
def test_writing_extreme_values(kernels: NativeKernels, kv: str) -> None:
    v = torch.randn(6, 2, 64, generator=generator(11))
    v[0], v[1, 0, 3], v[1, 1, 3], v[2], v[3, 0] = 0.0, float("nan"), float("-inf"), v[2] * 1e-42, v[3, 0] * 1e38
    v[4] = 0.5 * torch.arange(-32, 32) / 127  # halves, for the rounding
    k = torch.zeros_like(v)
    _, _, native_layer, layer = append_both(kernels, kv, torch.zeros(6, 2, 64), k, v, position=0)
    got, wanted = native_layer.read(0, 6)[1], layer.read(0, 6)[1]
    usual = torch.isfinite(wanted).all(-1)
    assert torch.equal(got[usual], wanted[usual])
    assert torch.equal(torch.isnan(got).any(-1), torch.isnan(wanted).any(-1))
    assert torch.equal(torch.isfinite(got).all(-1), usual)


def test_a_head_size_that_the_kernels_do_not_take_goes_to_torch() -> None:
    for C in (12, 264):
        layer = filled_layer("bf16", 1, 9, C, seed=12)
        q = torch.randn(1, 2, C, generator=generator(13))
        out = kernels_of("portable").attention_rows(q, layer, 8, None)
        assert torch.equal(out, reference.attention_rows(q, layer, 8, None))


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("window", [None, 40])
def test_torchs_prefill_stays_near_the_rows(kv: str, window: int | None) -> None:
    layer = filled_layer(kv, 2, 90, 64, seed=14)
    q = torch.randn(30, 6, 64, generator=generator(15))
    rows = reference.attention_rows(q, layer, 60, window)
    assert relative(reference.attention_prefill(q, layer, 60, window), rows) < 0.01


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("window", [None, 3, 600])
@pytest.mark.parametrize("heads", [(6, 1), (8, 2)])
def test_prefill_gives_a_row_the_bits_of_decode(
    kernels: NativeKernels, kv: str, window: int | None, heads: tuple[int, int]
) -> None:
    H, KV = heads
    layer = filled_layer(kv, KV, 1100, 64, seed=16)
    q = torch.randn(75, H, 64, generator=generator(17))
    out = kernels.attention_prefill(q, layer, 1000, window)
    for t in (0, 1, 15, 16, 23, 24, 60, 74):  # both sides of a tile of rows, and of a block of positions
        assert torch.equal(out[t : t + 1], kernels.attention_rows(q[t : t + 1], layer, 1000 + t, window))
    assert relative(out, reference.attention_rows(q, layer, 1000, window)) < BOUND[kv]


def test_prefill_takes_no_memory_that_grows_with_the_context() -> None:
    resource = pytest.importorskip("resource")
    layer = filled_layer("bf16", 1, 16384, 64, seed=18)
    q = torch.randn(64, 8, 64, generator=generator(19))
    kernels = kernels_of(ISAS[-1])
    kernels.attention_prefill(q, layer, 1000, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kernels.attention_prefill(q, layer, 16000, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 << 10
