"""nf4 against bitsandbytes itself."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixq.errors import ModelFileError
from mixq.formats import nf4
from mixq.formats.packed import PackedLinear, packed_bytes, tensor_specs
from mixq.formats.scheme import Scheme

functional = pytest.importorskip("bitsandbytes.functional")


def bits_per_weight(scheme: Scheme, shape: tuple[int, int]) -> float:
    """Return the bits per weight of a scheme, scales included."""
    return packed_bytes(scheme, shape) * 8 / math.prod(shape)


def theirs(
    weight: Tensor, blocksize: int, *, nested: bool = False, storage: torch.dtype = torch.uint8
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Tensors by suffix as bitsandbytes saves them, and what it dequantizes them to, in its dtype and in float32."""
    packed, state = functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=nested, quant_type="nf4", quant_storage=storage
    )
    tensors = {"weight": packed}
    tensors.update({f"weight.{key}": value for key, value in state.as_dict(packed=True).items()})
    dense = functional.dequantize_4bit(packed, state)
    state.dtype = torch.float32
    return tensors, dense, functional.dequantize_4bit(packed, state)


def random_weight(N: int, K: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=generator) * 0.02
    weight[0, : K // 2] *= 30
    return weight.to(dtype)


DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MANY = settings(max_examples=40, deadline=None)
sizes = {
    "N": st.integers(1, 40),
    "K": st.sampled_from([64, 128, 192, 512]),
    "dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 2**32 - 1),
}


@MANY
@given(
    **sizes, blocksize=st.sampled_from([32, 64]), nested=st.booleans(), storage=st.sampled_from([torch.uint8, *DTYPES])
)
def test_dequantize_is_bitsandbytes(
    N: int, K: int, dtype: torch.dtype, seed: int, blocksize: int, nested: bool, storage: torch.dtype
) -> None:
    tensors, dense, dense_float = theirs(random_weight(N, K, dtype, seed), blocksize, nested=nested, storage=storage)
    ours = PackedLinear(Scheme("nf4", blocksize), (N, K), tensors).dequantize()
    assert ours.equal(dense_float)
    assert ours.to(dtype).equal(dense)


@MANY
@given(**sizes)
def test_quantize_is_bitsandbytes(N: int, K: int, dtype: torch.dtype, seed: int) -> None:
    weight = random_weight(N, K, dtype, seed)
    expected, _, _ = theirs(weight, 64)
    ours = nf4.quantize(weight, 64, dtype)
    assert ours.keys() == expected.keys()
    for suffix, tensor in ours.items():
        assert tensor.dtype == expected[suffix].dtype, suffix
        assert tensor.equal(expected[suffix]), suffix


@pytest.mark.parametrize("shape", [(5, 96, 128), (3, 64, 1024), (3, 62, 64), (7, 160, 64)])
def test_blocks_run_over_the_ends_of_rows(shape: tuple[int, int, int]) -> None:
    """And the last block may be short.

    bitsandbytes 0.50 gets such rows wrong on a CPU (it starts a block with each row), so it is asked about the same
    weights as one long row.
    """
    N, K, blocksize = shape
    weight = random_weight(N, K, torch.bfloat16, 1)
    tensors, _, _ = theirs(weight, blocksize)
    _, dense, _ = theirs(weight.reshape(1, -1), blocksize)
    ours = PackedLinear(Scheme("nf4", blocksize), (N, K), tensors).dequantize()
    assert ours.bfloat16().equal(dense.reshape(N, K))


def test_a_block_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 64)
    weight[1, 5] = 1e-42
    expected, _, _ = theirs(weight, 64)
    ours = nf4.quantize(weight, 64, torch.float32)
    assert all(tensor.equal(expected[suffix]) for suffix, tensor in ours.items())
    assert nf4.dequantize(ours)[0].abs().max() == 0


def test_what_is_written_fills_the_specs_and_is_read_by_the_library() -> None:
    weight = random_weight(8, 128, torch.bfloat16, 5)
    tensors = nf4.quantize(weight, 64, torch.bfloat16)
    assert {s: (t.dtype, tuple(t.shape)) for s, t in tensors.items()} == tensor_specs(Scheme("nf4", 64), (8, 128))
    state = functional.QuantState.from_dict(
        {key.removeprefix("weight."): value for key, value in tensors.items() if key != "weight"}, torch.device("cpu")
    )
    dense = functional.dequantize_4bit(tensors["weight"], state)
    assert dense.equal(nf4.dequantize(tensors).bfloat16())


def test_unpack_is_the_inverse_of_pack() -> None:
    codes = torch.randint(0, 16, (6, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    maxima = torch.rand(6, generator=torch.Generator().manual_seed(3))
    unpacked, again = nf4.unpack(nf4.pack(codes, maxima, 64, torch.float16))
    assert unpacked.equal(codes)
    assert again.equal(maxima)


def test_size() -> None:
    assert bits_per_weight(Scheme("nf4", 64), (14336, 4096)) == pytest.approx(4.5, abs=1e-3)


def test_it_has_no_integer_form() -> None:
    packed = PackedLinear(Scheme("nf4", 64), (2, 64), nf4.quantize(torch.ones(2, 64), 64, torch.bfloat16))
    with pytest.raises(ValueError, match="integer"):
        packed.integer_form()


def state_bytes(**changes: object) -> bytes:
    fields = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 64], **changes}
    return json.dumps({key: value for key, value in fields.items() if value != "absent"}).encode()


BAD_STATES = {
    "not JSON": b"{]",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 4000,
    "a list": b"[]",
    "fp4": state_bytes(quant_type="fp4"),
    "no shape": state_bytes(shape="absent"),
    "one dimension": state_bytes(shape=[128]),
    "negative shape": state_bytes(shape=[-2, -64]),
    "huge shape": state_bytes(shape=[2**31, 2**31]),
    "float shape": state_bytes(shape=[2.0, 64.0]),
    "another shape": state_bytes(shape=[2, 128]),
    "zero blocks": state_bytes(blocksize=0),
    "float blocks": state_bytes(blocksize=64.0),
    "odd blocks": state_bytes(blocksize=48),
    "unknown dtype": state_bytes(dtype="__class__"),
    "dtype is a list": state_bytes(dtype=["float32"]),
    "nested without its tensors": state_bytes(nested_blocksize=256, nested_offset=0.0, nested_dtype="float32"),
    "nested by a fraction": state_bytes(nested_blocksize=0.5),
    "nested in halves": state_bytes(nested_blocksize=256, nested_dtype="float16"),
    "infinite offset": state_bytes(nested_offset=1e31),
    "NaN offset": state_bytes(nested_offset=float("nan")),
    "a book": b" " * 5000,
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_bad_state_is_a_model_file_error(kind: str) -> None:
    tensors = nf4.quantize(torch.ones(2, 64), 64, torch.bfloat16)
    tensors[nf4.STATE] = torch.frombuffer(bytearray(BAD_STATES[kind]), dtype=torch.uint8)
    with pytest.raises(ModelFileError, match="nf4") as caught:
        nf4.read_state(tensors)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("suffix", [nf4.STATE, "weight", "weight.absmax", "weight.quant_map"])
def test_a_missing_or_short_tensor_is_a_model_file_error(suffix: str) -> None:
    tensors = nf4.quantize(torch.ones(4, 64), 64, torch.bfloat16)
    with pytest.raises(ModelFileError):
        nf4.read_state({**tensors, suffix: tensors[suffix][:-1]})
    del tensors[suffix]
    with pytest.raises(ModelFileError, match="missing"):
        nf4.read_state(tensors)
