"""nf4: bitsandbytes' tensors, as transformers writes them.

Contract: W.flat[i] = quant_map[code[i]] * absmax[i // blocksize], blocks running over the flattened [N, K]. Tensors of
a linear layer: `weight` u8 [N*K/2, 1] (the even weight in the HIGH half; or the same bytes stored as another dtype,
bitsandbytes' quant_storage), `weight.absmax` f32 [blocks], `weight.quant_map` f32 [16] and
`weight.quant_state.bitsandbytes__nf4`, JSON as u8. Nested absmax, read only: `weight.absmax` u8 [blocks] with
`weight.nested_absmax` f32 and `weight.nested_quant_map` f32 [256]; absmax = nested_quant_map[u8] *
nested_absmax[block // nested_blocksize] + nested_offset. Rules as in bitsandbytes 0.50 (backends/default/ops.py,
functional.py QuantState); the levels are those of the QLoRA paper (arXiv 2305.14314, appendix E).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.errors import Fields, ModelFileError, is_integer
from mixq.formats.json_file import parse_json_object
from mixq.formats.nl4 import Specs
from mixq.formats.scheme import GROUP_SIZES

STATE = "weight.quant_state.bitsandbytes__nf4"
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
MAX_STATE_BYTES = 4096
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

QUANT_MAP: tuple[float, ...] = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """The state that bitsandbytes stores as JSON; the nested fields are 0 if absmax is not nested."""

    shape: tuple[int, int]
    blocksize: int
    dtype: torch.dtype
    nested_blocksize: int = 0
    nested_offset: float = 0.0

    @property
    def nested(self) -> bool:
        return self.nested_blocksize > 0

    @property
    def blocks(self) -> int:
        return -(-self.shape[0] * self.shape[1] // self.blocksize)

    def to_json(self) -> bytes:
        """Return the bytes that bitsandbytes writes for a plain absmax."""
        name = str(self.dtype).removeprefix("torch.")
        fields = {"quant_type": "nf4", "blocksize": self.blocksize, "dtype": name, "shape": list(self.shape)}
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, data: bytes) -> State:
        """Check and return the state; raises ModelFileError."""
        fields = Fields(parse_json_object(data, "nf4: the quant_state"), "nf4: quant_state.")
        shape = fields.values.get("shape")
        if not (isinstance(shape, list) and len(shape) == 2 and all(is_integer(n, 1, 2**31 - 1) for n in shape)):
            raise fields.wrong("shape", "two positive sizes")
        fields.one_of("quant_type", ("nf4",))
        state = cls(
            (shape[0], shape[1]),
            fields.one_of("blocksize", GROUP_SIZES["nf4"]),
            DTYPES[fields.one_of("dtype", tuple(DTYPES))],
            fields.integer("nested_blocksize", 0, 2**31 - 1, default=0),
            fields.number("nested_offset", -1e30, 1e30, default=0.0),
        )
        if state.nested:
            fields.one_of("nested_dtype", ("float32",), default="float32")
        return state


def specs(shape: tuple[int, int], blocksize: int, dtype: torch.dtype) -> Specs:
    """Return dtype and shape of each tensor of a linear layer [N, K] as written here: plain absmax."""
    state = State(shape, blocksize, dtype)
    return {
        "weight": (torch.uint8, (-(-shape[0] * shape[1] // 2), 1)),
        "weight.absmax": (torch.float32, (state.blocks,)),
        "weight.quant_map": (torch.float32, (16,)),
        STATE: (torch.uint8, (len(state.to_json()),)),
    }


def read_state(tensors: Mapping[str, Tensor]) -> State:
    """Return the checked state of a linear layer's tensors, and check that the other tensors fit it.

    Raises:
        ModelFileError: a tensor is missing, or does not have the size or dtype of the state.
    """
    blob = tensors.get(STATE)
    if blob is None or blob.dtype != torch.uint8 or blob.ndim != 1 or not 2 <= blob.numel() <= MAX_STATE_BYTES:
        raise ModelFileError(f"nf4: {STATE} is missing, or larger than {MAX_STATE_BYTES} bytes.")
    state = State.from_json(bytes(blob.tolist()))
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"weight.quant_map": (torch.float32, (16,))}
    wanted["weight.absmax"] = (torch.uint8 if state.nested else torch.float32, (state.blocks,))
    if state.nested:
        wanted["weight.nested_absmax"] = (torch.float32, (-(-state.blocks // state.nested_blocksize),))
        wanted["weight.nested_quant_map"] = (torch.float32, (256,))
    for suffix, (dtype, shape) in wanted.items():
        tensor = tensors.get(suffix)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise ModelFileError(f"nf4: {suffix} is {found}; it must be {dtype} {list(shape)}.")
    weight = tensors.get("weight")
    if weight is None or weight.nbytes != math.ceil(state.shape[0] * state.shape[1] / 2):
        found = "missing" if weight is None else f"{weight.nbytes} bytes"
        raise ModelFileError(f"nf4: weight is {found}; shape {list(state.shape)} requires half a byte per weight.")
    return state


def absmax(tensors: Mapping[str, Tensor], state: State) -> Tensor:
    """Return the block maxima as float32 [blocks], dequantized if they are nested."""
    stored = tensors["weight.absmax"]
    if not state.nested:
        return stored
    outer = tensors["weight.nested_absmax"].repeat_interleave(state.nested_blocksize)[: stored.numel()]
    # Rounded twice, as in bitsandbytes: after the product and after the sum.
    return tensors["weight.nested_quant_map"][stored.to(torch.int32)] * outer + state.nested_offset


def pack(codes: Tensor, block_absmax: Tensor, blocksize: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of codes uint8 [N, K] in 0..15 and float32 block maxima [blocks]; N*K must be even."""
    N, K = codes.shape
    state = State((N, K), blocksize, dtype)
    flat = codes.reshape(-1)
    if codes.dtype != torch.uint8 or flat.numel() % 2 or (flat.numel() and int(flat.max()) > 15):
        raise ValueError(f"codes must be uint8 in 0..15, an even number of them, not {codes.dtype} {list(codes.shape)}")
    if block_absmax.dtype != torch.float32 or block_absmax.shape != (state.blocks,):
        raise ValueError(f"absmax must be float32 [{state.blocks}], not {list(block_absmax.shape)}")
    return {
        "weight": ((flat[0::2] << 4) | flat[1::2])[:, None],
        "weight.absmax": block_absmax.contiguous(),
        "weight.quant_map": torch.tensor(QUANT_MAP),
        STATE: torch.frombuffer(bytearray(state.to_json()), dtype=torch.uint8),
    }


def unpack(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return codes uint8 [N, K] and float32 block maxima [blocks]."""
    state = read_state(tensors)
    stored = tensors["weight"].contiguous().view(torch.uint8).reshape(-1)
    codes = torch.stack((stored >> 4, stored & 15), dim=-1).reshape(-1)
    return codes[: math.prod(state.shape)].reshape(state.shape), absmax(tensors, state)


def dequantize(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weights as float32 [N, K], before bitsandbytes' rounding to the state's dtype."""
    state = read_state(tensors)
    codes, maxima = unpack(tensors)
    values = tensors["weight.quant_map"][codes.to(torch.int32)].reshape(-1)
    return (values * maxima.repeat_interleave(state.blocksize)[: values.numel()]).reshape(state.shape)


def quantize(weight: Tensor, blocksize: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Quantize a weight [N, K] as bitsandbytes' quantize_4bit does: nearest level of absmax-scaled blocks."""
    N, K = weight.shape
    if N * K % blocksize:
        raise ValueError(f"[{N}, {K}] is not a whole number of blocks of {blocksize}")
    blocks = weight.reshape(-1, blocksize).to(torch.float32)
    maxima = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / maxima.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    levels = torch.tensor(QUANT_MAP)
    codes = torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2, out_int32=True).to(torch.uint8)
    return pack(codes.reshape(N, K), maxima, blocksize, dtype)
