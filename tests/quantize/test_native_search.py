"""The search in C++ against the reference in torch: the same bytes and the same figures, on every instruction set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixq.formats import nl4
from mixq.formats.scheme import GROUP_SIZES, Scheme
from mixq.kernels import native_library
from mixq.quantize import native_search as in_cpp
from mixq.quantize import scale_search
from mixq.quantize.quantized import Quantized
from mixq.quantize.scale_search import reference_search

LIBRARY = native_library.library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=str(native_library.unavailable_reason()))

ISAS = native_library.supported_isas()
SCHEMES = [f"{name}:{g}" for name in ("nl4", "w4", "w8") for g in GROUP_SIZES[name]]
TABLES = {
    "default": nl4.DEFAULT_TABLE,
    "even": tuple(range(-120, 120, 15)),
    "neighbours": tuple(range(-8, 8)),
    "from end to end": (-128, -127, -126, -60, -59, -3, -1, 0, 1, 2, 50, 51, 99, 125, 126, 127),
    "narrow at the ends": (-128, -119, -109, -92, -75, -58, -41, -24, -7, 10, 27, 44, 75, 107, 118, 127),
    "all negative": tuple(range(-128, -112)),
    "all positive": (*range(1, 121, 8), 127),
}
BF16_MAX = torch.finfo(torch.bfloat16).max


def native_search(weight: Tensor, scheme: Scheme, isa: str, block_rows: int = 7, **settings: object) -> Quantized:
    table = settings.get("table", nl4.DEFAULT_TABLE)
    scale_dtype = settings.get("scale_dtype", torch.bfloat16)
    importance, number = settings.get("importance"), native_library.ISA_NAMES[isa]
    return in_cpp.search(weight, scheme, table, scale_dtype, block_rows, importance, number)  # type: ignore[arg-type]


def assert_equal(found: Quantized, wanted: Quantized) -> None:
    assert list(found.packed.tensors) == list(wanted.packed.tensors)
    for suffix, tensor in wanted.packed.tensors.items():
        # Bytes, since 0 and -0 are equal as numbers.
        other = found.packed.tensors[suffix]
        assert other.dtype == tensor.dtype
        assert torch.equal(other.view(torch.uint8), tensor.contiguous().view(torch.uint8)), suffix
    if wanted.packed.table is not None:
        assert found.packed.table is not None
        assert torch.equal(found.packed.table, wanted.packed.table)
    assert found.relative_squared_error == wanted.relative_squared_error
    assert found.group_error == wanted.group_error


def check(weight: Tensor, scheme: str, *, isas: list[str] = ISAS, **settings: object) -> None:
    parsed = Scheme.parse(scheme)
    wanted = reference_search(weight, parsed, **settings)  # type: ignore[arg-type]
    for isa in isas:
        assert_equal(native_search(weight, parsed, isa, **settings), wanted)


def random(rows: int, columns: int, seed: int = 5) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# Groups in a row: fewer than a vector has lanes, more, and not a multiple of them.
@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 48, 50])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_number_of_groups(scheme: str, groups: int) -> None:
    check(random(5, groups * Scheme.parse(scheme).group_size, seed=groups), scheme)


@pytest.mark.parametrize("groups", [1, 7, 16, 19, 33])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_columns_that_count_differently(scheme: str, groups: int) -> None:
    K = groups * Scheme.parse(scheme).group_size
    weight = random(5, K, seed=groups)
    weight[1, :16] *= 90  # a row whose other groups lose by int8 scales
    importance = scale_search.normalised_importance(random(1, K, seed=1)[0].mul(2).exp(), K)
    check(weight, scheme, importance=importance)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_number_of_rows(scheme: str) -> None:
    for rows in (*range(1, 12), 64, 70):
        check(random(rows, 384, seed=rows), scheme)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_source_dtype(scheme: str, dtype: torch.dtype) -> None:
    for size in (0.02, 1, 1e-6, 1e4):  # 1e-6: denormals of float16
        check((random(4, 640) * size).clamp(-6e4, 6e4).to(dtype), scheme)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme[0] == "w"])
def test_scale_dtypes(scheme: str, scale_dtype: torch.dtype) -> None:
    sizes = torch.logspace(-40, 37, 64)[:, None]  # float16 scales: none, denormal, normal, too large
    check(random(64, 384).clamp(-3, 3) * sizes, scheme, scale_dtype=scale_dtype)


EXTREMES = {
    "zero": torch.zeros(3, 384),
    "minus zero": -torch.zeros(3, 384),
    "zero groups": torch.cat([torch.zeros(3, 256), random(3, 128)], 1),
    "a zero row": torch.cat([random(2, 384), torch.zeros(1, 384), random(2, 384)]),
    "smallest denormal": torch.full((3, 384), 1e-45),
    "denormals": random(3, 384) * 1e-40,
    "denormal groups": torch.cat([random(3, 128), random(3, 256) * 1e-42], 1),
    "denormals beside normal numbers": random(3, 384) * torch.logspace(-39, -36, 384),
    "1e-38": random(3, 384) * 1e-38,
    "1e38": random(3, 384).clamp(-3, 3) * 1e38,
    "float32's largest": torch.full((3, 384), torch.finfo(torch.float32).max) * random(3, 384).sign(),
    "largest bf16, both signs": torch.full((3, 384), BF16_MAX) * (1 - 2 * (torch.arange(384) % 3 == 0).float()),
    "largest beside smallest": torch.cat([torch.full((3, 1), -BF16_MAX), torch.full((3, 383), 1e-45)], 1),
    "81 powers of ten in a row": random(3, 384) * torch.logspace(-44, 37, 384),
    "one weight": torch.nn.functional.pad(torch.tensor([[1.0], [-3.0], [1e-30]]), (37, 346)),
    "all the same": torch.full((2, 384), -0.3),
    "powers of two": 2.0 ** torch.randint(-20, 20, (4, 384), generator=torch.Generator().manual_seed(1)),
    "whole numbers": torch.randint(-9, 10, (8, 384), generator=torch.Generator().manual_seed(2)).float(),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", EXTREMES)
def test_extremes(case: str, scheme: str) -> None:
    check(EXTREMES[case], scheme)
    check(EXTREMES[case], scheme, scale_dtype=torch.float16)


@pytest.mark.parametrize("group", GROUP_SIZES["nl4"])
def test_rows_that_get_the_search_for_a_row_scale(group: int) -> None:
    for factor in (3, 10, 50, 1000, 1e6):
        weight = random(6, group * 19)
        weight.view(6, 19, group)[:4, 7] *= factor
        check(weight, f"nl4:{group}")
        check(-weight, f"nl4:{group}")


def test_every_step_of_the_row_scale_is_searched() -> None:
    weight = random(200, 16 * 4)
    weight.view(200, 4, 16)[:, 0] = 40  # exact at every step, so the other groups decide
    check(weight, "nl4:16")
    scale = native_search(weight, Scheme("nl4", 16), ISAS[-1]).packed.tensors["weight_scale"]
    assert set(scale.int().abs().amax(1).tolist()) == {*scale_search.ROW_STEPS}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("group", GROUP_SIZES["nl4"])
def test_other_tables(table: str, group: int) -> None:
    weight = random(6, 384)
    weight[1].view(-1, group)[3] *= 60
    check(weight, f"nl4:{group}", table=TABLES[table])


@pytest.mark.parametrize("table", TABLES)
def test_weights_half_way_between_two_values(table: str) -> None:
    """Where the scale is a power of two, such weights are exact ties in some of the trials, and beside them by one bit
    in others."""
    values = torch.tensor(TABLES[table], dtype=torch.float32)
    points = torch.cat([(values[1:] + values[:-1]) / 2, values])
    places = torch.randint(0, len(points), (24, 384), generator=torch.Generator().manual_seed(3))
    weight = points[places]
    weight[:, ::32] = values.abs().max()
    weight[8:16] *= 1.01  # as one of the start scales
    bits = weight[16:].view(torch.int32)
    steps = torch.randint(-1, 2, bits.shape, generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    bits += steps * (bits & 0x7FFFFFFF != 0)
    for scheme in SCHEMES:
        check(weight, scheme, table=TABLES[table])
        check(weight * 2.0**-70, scheme, table=TABLES[table])


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme[0] == "w"])
def test_scales_half_way_between_two_stored_ones(scheme: str, scale_dtype: torch.dtype) -> None:
    parsed = Scheme.parse(scheme)
    half_step = torch.finfo(scale_dtype).eps / 2
    for exponent in (0, -3, -14, -16, -20):  # -16 and -20: denormals of float16
        scale = (1 + half_step * torch.arange(64)) * 2.0**exponent
        weight = torch.zeros(64, parsed.group_size)  # two weights, which this scale and no other gives exactly
        weight[:, 3] = scale * -(2 ** (parsed.bits - 1))
        weight[:, 8] = scale * (2 ** (parsed.bits - 2) - 1)
        check(weight, scheme, scale_dtype=scale_dtype)
        check(-weight, scheme, scale_dtype=scale_dtype)


ascending = st.sets(st.integers(-128, 127), min_size=16, max_size=16).map(lambda values: tuple(sorted(values)))


@settings(max_examples=120, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    rows=st.integers(1, 9),
    groups=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 0.3, 2.0, 20.0]),
    exponent=st.integers(-140, 120),
    grain=st.sampled_from([0.0, 0.5, 0.0625]),
    table=ascending,
    block_rows=st.integers(1, 10),
)
def test_random_weights(
    scheme: str,
    rows: int,
    groups: int,
    seed: int,
    spread: float,
    exponent: int,
    grain: float,
    table: tuple[int, ...],
    block_rows: int,
) -> None:
    parsed = Scheme.parse(scheme)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups, parsed.group_size, generator=generator)
    weight *= 2 ** (torch.randn(rows, groups, 1, generator=generator) * spread).clamp(-100, 100)
    if grain:
        weight = (weight / grain).round() * grain  # coarse numbers have ties
    weight = (weight.double() * 2.0**exponent).clamp(-BF16_MAX, BF16_MAX).float().view(rows, -1)
    wanted = reference_search(weight, parsed, table=table)
    for isa in ISAS:
        assert_equal(native_search(weight, parsed, isa, block_rows, table=table), wanted)


@pytest.mark.parametrize("scheme", ["nl4:32", "w4:32", "w8:64"])
def test_neither_threads_nor_blocks_nor_layout_change_a_bit(scheme: str) -> None:
    weight = random(48, 1024)
    weight[5].view(-1, 32)[3] *= 80
    wanted = reference_search(weight, Scheme.parse(scheme))
    before = torch.get_num_threads()
    try:
        for threads, block_rows in ((1, 1), (1, 5), (2, 48), (2, 7), (3, 100)):
            torch.set_num_threads(threads)
            assert_equal(native_search(weight, Scheme.parse(scheme), ISAS[-1], block_rows), wanted)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_equal(native_search(weight.t().contiguous().t(), Scheme.parse(scheme), ISAS[-1]), wanted)
    wide = torch.cat([weight, weight], 1)[:, :1024]  # rows with a gap between them
    assert_equal(native_search(wide, Scheme.parse(scheme), ISAS[-1]), wanted)


def test_search_uses_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXQ_CPU_ISA", raising=False)
    monkeypatch.setattr(scale_search, "reference_search", None)
    for scheme in SCHEMES:
        scale_search.search(random(2, 128), Scheme.parse(scheme))


def test_the_environment_switches_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "reference")
    assert native_library.library() is None
    weight = random(2, 128)
    assert_equal(scale_search.search(weight, Scheme("nl4", 32)), reference_search(weight, Scheme("nl4", 32)))


def test_not_finite_weights_do_no_harm() -> None:
    """They never get here, see `nonfinite`; if they do, codes are useless but nothing else is."""
    weight = random(4, 384)
    weight[0, 5], weight[1, 7], weight[2, 9] = torch.nan, torch.inf, -torch.inf
    for scheme in SCHEMES:
        wanted = reference_search(weight[3:], Scheme.parse(scheme)).packed.tensors
        for isa in ISAS:
            found = native_search(weight, Scheme.parse(scheme), isa).packed.tensors
            for suffix in set(wanted) - {"weight_shape"}:
                assert torch.equal(found[suffix][3:], wanted[suffix])


def test_scales_of_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="scales are bf16 or f16"):
        native_search(random(2, 128), Scheme("w4", 32), ISAS[0], scale_dtype=torch.float32)


def test_arguments_that_the_library_refuses() -> None:
    """Python never passes such; the library looks again, since an unknown CPU instruction ends the process."""
    code = (
        "import torch; from mixq.quantize.native_search import search\n"
        "from mixq.formats.scheme import Scheme; from mixq.formats.nl4 import DEFAULT_TABLE\n"
        "search(torch.ones(2, 64), Scheme('nl4', 32), DEFAULT_TABLE, torch.bfloat16, 1, isa=99)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AssertionError: the library refused" in done.stderr
