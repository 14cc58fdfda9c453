"""nl4's bytes: what mixq/README.md defines, weight by weight."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixq.formats import nl4
from mixq.formats.nl4 import pack_nibbles, unpack_nibbles
from mixq.formats.packed import PackedLinear, packed_bytes, tensor_specs
from mixq.formats.scheme import Scheme


def bits_per_weight(scheme: Scheme, shape: tuple[int, int]) -> float:
    """Return the bits per weight of a scheme, scales included."""
    return packed_bytes(scheme, shape) * 8 / math.prod(shape)


def random_parts(N: int, K: int, group_size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (N, K), generator=generator, dtype=torch.uint8)
    scale = torch.randint(-128, 128, (N, K // group_size), generator=generator).to(torch.int8)
    row_scale = torch.randn(N, generator=generator)
    return codes, scale, row_scale


shapes = st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from([16, 32, 64]), st.integers(0, 2**32 - 1))


@settings(max_examples=80, deadline=None)
@given(shapes)
def test_packing_loses_nothing_and_fills_the_specs(drawn: tuple[int, int, int, int]) -> None:
    N, G, group_size, seed = drawn
    parts = random_parts(N, G * group_size, group_size, seed)
    tensors = nl4.pack(*parts)
    assert all(a.equal(b) for a, b in zip(nl4.unpack(tensors), parts, strict=True))
    specs = tensor_specs(Scheme("nl4", group_size), (N, G * group_size))
    assert {suffix: (t.dtype, tuple(t.shape)) for suffix, t in tensors.items()} == specs


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_dequantize_is_the_formula(drawn: tuple[int, int, int, int]) -> None:
    N, G, group_size, seed = drawn
    codes, scale, row_scale = random_parts(N, G * group_size, group_size, seed)
    packed = PackedLinear(
        Scheme("nl4", group_size), (N, G * group_size), nl4.pack(codes, scale, row_scale), nl4.table_tensor()
    )
    weights = packed.dequantize()
    for n in range(N):
        for k in range(G * group_size):
            exact = nl4.DEFAULT_TABLE[int(codes[n, k])] * int(scale[n, k // group_size]) * float(row_scale[n])
            assert weights[n, k] == torch.tensor(exact, dtype=torch.float64).float()
    values, group_scale, rows = packed.integer_form()
    assert values.dtype == torch.int8
    again = values.float() * group_scale.repeat_interleave(group_size, 1) * rows[:, None]
    assert again.equal(weights)


def test_the_even_weight_is_in_the_low_half() -> None:
    packed = pack_nibbles(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]
    assert unpack_nibbles(packed).tolist() == [[1, 2, 15, 0]]


def test_exact_sizes() -> None:
    w1 = (14336, 4096)
    assert bits_per_weight(Scheme("nl4", 32), w1) == pytest.approx(4.2578125, abs=1e-9)  # 4 + 8/32 + 32/4096
    assert bits_per_weight(Scheme("nl4", 16), (4096, 4096)) == pytest.approx(4 + 0.5 + 32 / 4096)
    assert bits_per_weight(Scheme("w4", 32), w1) == pytest.approx(4.5, abs=1e-5)
    assert bits_per_weight(Scheme("w8", 128), w1) == pytest.approx(8.125, abs=1e-5)
    assert packed_bytes(Scheme("nl4", 32), w1) == 14336 * (2048 + 128 + 4)
    # An expert of Mixtral in nl4 g32, whose 176.2 M weights take 93.7 MB.
    assert 2 * packed_bytes(Scheme("nl4", 32), w1) + packed_bytes(Scheme("nl4", 32), (4096, 14336)) == 93_716_480


@pytest.mark.parametrize(
    "table", [[], list(range(15)), [0] * 16, list(range(15, -1, -1)), [*range(15), 128], [-129, *range(15)],
              [*range(15), 15.5], [*range(15), True], "0123456789abcdef"]
)  # fmt: skip
def test_a_table_is_sixteen_ascending_int8(table: object) -> None:
    assert not nl4.is_table(table)


def test_wrong_parts_are_refused() -> None:
    codes, scale, row_scale = random_parts(2, 32, 16, 0)
    for bad in (
        (codes + 1, scale, row_scale),  # a code of 16
        (codes.int(), scale, row_scale),
        (codes[:, :31], scale, row_scale),
        (codes, scale.float(), row_scale),
        (codes, scale[:1], row_scale),
        (codes, scale, row_scale.double()),
        (codes, scale, row_scale[:, None]),
    ):
        with pytest.raises(ValueError, match=r"must be|above 15"):
            nl4.pack(*bad)
    with pytest.raises(ValueError, match="table"):
        PackedLinear(Scheme("nl4", 16), (2, 32), nl4.pack(codes, scale, row_scale))
    with pytest.raises(ValueError, match="requires"):
        PackedLinear(Scheme("nl4", 32), (2, 32), nl4.pack(codes, scale, row_scale), nl4.table_tensor())
