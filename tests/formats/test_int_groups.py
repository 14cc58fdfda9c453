"""w4 and w8 against compressed-tensors' own functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.formats import int_groups
from mixq.formats.packed import PackedLinear, tensor_specs
from mixq.formats.scheme import Scheme

helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")

drawn_linears = st.tuples(
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(["w4:32", "w4:64", "w4:128", "w8:32", "w8:64", "w8:128"]),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=80, deadline=None)
@given(drawn_linears)
def test_packing_is_the_librarys(drawn: tuple[int, int, str, torch.dtype, int]) -> None:
    N, G, text, scale_dtype, seed = drawn
    scheme = Scheme.parse(text)
    K = G * scheme.group_size
    generator = torch.Generator().manual_seed(seed)
    limit = 2 ** (scheme.bits - 1)
    q = torch.randint(-limit, limit, (N, K), generator=generator).to(torch.int8)
    scale = torch.randn(N, G, generator=generator).to(scale_dtype)  # half of them negative

    tensors = int_groups.pack(q, scale, scheme.bits)
    assert tensors["weight_packed"].equal(helpers.pack_to_int32(q, scheme.bits))
    assert helpers.unpack_from_int32(tensors["weight_packed"], scheme.bits, torch.Size((N, K))).equal(q)
    assert tensors["weight_shape"].tolist() == [N, K]
    specs = tensor_specs(scheme, (N, K), scale_dtype)
    assert {suffix: (t.dtype, tuple(t.shape)) for suffix, t in tensors.items()} == specs

    unpacked, unpacked_scale = int_groups.unpack(tensors, scheme.bits)
    assert unpacked.equal(q)
    assert unpacked_scale.equal(scale)
    packed = PackedLinear(scheme, (N, K), tensors)
    exact = q.double() * scale.double().repeat_interleave(scheme.group_size, 1)
    assert packed.dequantize().double().equal(exact)
    values, group_scale, row_scale = packed.integer_form()
    assert (values.float() * group_scale.repeat_interleave(scheme.group_size, 1) * row_scale[:, None]).equal(
        packed.dequantize()
    )


@pytest.mark.parametrize("text", ["w4:32", "w8:128"])
def test_the_librarys_compressor_makes_and_reads_the_same_tensors(text: str) -> None:
    """Through the whole compressor: scales in, tensors by name out, and back."""
    base = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    scheme = Scheme.parse(text)
    limit = 2 ** (scheme.bits - 1)
    q = torch.randint(-limit, limit, (16, 256), generator=torch.Generator().manual_seed(3)).to(torch.int8)
    scale = torch.randn(16, 256 // scheme.group_size, generator=torch.Generator().manual_seed(4)).bfloat16()
    ours = PackedLinear(scheme, (16, 256), int_groups.pack(q, scale, scheme.bits))
    weights = quantization.QuantizationArgs(
        num_bits=scheme.bits, type="int", symmetric=True, strategy="group", group_size=scheme.group_size
    )
    their_scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    dense = base.PackedQuantizationCompressor.decompress(dict(ours.tensors), their_scheme)["weight"]
    assert dense.float().equal(ours.dequantize().to(dense.dtype).float())


def test_wrong_parts_are_refused() -> None:
    q = torch.zeros(2, 32, dtype=torch.int8)
    scale = torch.ones(2, 1, dtype=torch.bfloat16)
    for bad_q, bad_scale, bits in (
        (q + 8, scale, 4),
        (q - 9, scale, 4),
        (q.int(), scale, 4),
        (q[:, :31], scale, 4),
        (q, scale.float(), 4),
        (q, scale[:1], 8),
        (q, scale, 5),
    ):
        with pytest.raises(ValueError, match=r"must be|outside -8\.\.7"):
            int_groups.pack(bad_q, bad_scale, bits)


def test_every_byte_survives() -> None:
    q = torch.arange(-128, 128).to(torch.int8).reshape(2, 128)
    tensors = int_groups.pack(q, torch.ones(2, 1, dtype=torch.bfloat16), 8)
    assert int_groups.unpack(tensors, 8)[0].equal(q)
    assert tensors["weight_packed"].view(torch.uint8)[0, 0] == 0  # q + 128
