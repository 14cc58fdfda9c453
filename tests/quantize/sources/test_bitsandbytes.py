"""bitsandbytes' 4-bit checkpoints, packed by the library itself: dequantized to what the library has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mixq
from mixq.errors import ModelFileError
from mixq.quantize.job import quantize
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_mixtral
from tests.packed_checkpoints import TOKENS, change, shards_of, usual, write_plain

functional = pytest.importorskip("bitsandbytes.functional")

Q = "model.layers.0.self_attn.q_proj"
STATE = "weight.quant_state.bitsandbytes__nf4"


def with_router(module: str) -> bool:
    return usual(module) or module.endswith(".gate")


def write_bitsandbytes(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    nested: bool = False,
    storage: torch.dtype = torch.uint8,
    packs: Callable[[str], bool] = usual,
    blocksize: int = 64,
    quant_type: str = "nf4",
) -> dict[str, Tensor]:
    """Write a checkpoint as transformers saves it; return the library's own dequantized weights, in `dtype`."""
    tensors = write_tiny_mixtral(path, layers=1, dtype=dtype, tokenizer=False)
    stored, weights = {}, {}
    for name, tensor in tensors.items():
        stored[name] = weights[name] = tensor
        if packs(name.removesuffix(".weight")):
            stored[name], state = functional.quantize_4bit(
                tensor, blocksize=blocksize, compress_statistics=nested, quant_type=quant_type, quant_storage=storage
            )
            stored |= {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
            weights[name] = functional.dequantize_4bit(stored[name], state)
            assert weights[name].dtype == dtype
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((path / "config.json").read_text())
    raw["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": str(storage).removeprefix("torch."),
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": nested,
    }
    (path / "config.json").write_text(json.dumps(raw))
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nested": True},
        {"packs": with_router},
        {"nested": True, "packs": with_router, "storage": torch.bfloat16},
        {"storage": torch.float32, "blocksize": 128},
    ],
    ids=lambda options: "-".join(f"{key}={getattr(value, '__name__', value)}" for key, value in options.items()),
)
def test_the_weights_are_those_of_the_library(dtype: torch.dtype, options: dict[str, Any], tmp_path: Path) -> None:
    weights = write_bitsandbytes(tmp_path / "packed", dtype=dtype, **options)
    source = open_source(tmp_path / "packed")
    assert any("is quantized already (bitsandbytes)" in text for text in source.notices)
    assert "quantization_config" not in source.raw_config
    for name, weight in weights.items():
        found = source.tensor(name)  # of packed ones before the library's rounding to `dtype`
        assert torch.equal(found.to(dtype), weight), name


@pytest.mark.parametrize("nested", [False, True])
def test_the_folder_is_that_of_the_dequantized_weights(nested: bool, tmp_path: Path) -> None:
    weights = write_bitsandbytes(tmp_path / "packed", nested=nested, packs=with_router)
    quantize(tmp_path / "packed", tmp_path / "out")
    quantize(write_plain(tmp_path / "plain", weights, tmp_path / "packed"), tmp_path / "expected")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")
    found, expected = (mixq.load(tmp_path / name).forward(TOKENS) for name in ("out", "expected"))
    assert torch.equal(found, expected)


def test_fp4_is_refused(tmp_path: Path) -> None:
    write_bitsandbytes(tmp_path / "packed", quant_type="fp4")
    with pytest.raises(ModelFileError, match="bnb_4bit_quant_type"):
        open_source(tmp_path / "packed")


def state_with(**fields: object) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        raw = json.loads(bytes(tensors[f"{Q}.{STATE}"].tolist())) | fields
        tensors[f"{Q}.{STATE}"] = torch.frombuffer(bytearray(json.dumps(raw).encode()), dtype=torch.uint8)

    return edit


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (state_with(shape=[64, 256]), r"the nf4 state says \[64, 256\]; by config\.json it must be \[128, 128\]"),
        (state_with(shape=[-128, -128]), r"quant_state\.shape is"),
        (state_with(blocksize=0), r"quant_state\.blocksize is 0"),
        (state_with(nested_blocksize=-1), r"quant_state\.nested_blocksize is -1"),
        (state_with(nested_offset=1e300), "nested_offset"),
        (lambda tensors: tensors.pop(f"{Q}.weight.quant_map"), "quant_map is missing"),
        (lambda tensors: tensors.update({f"{Q}.weight": torch.zeros(8191, 1, dtype=torch.uint8)}), "8191 bytes"),
        (lambda tensors: tensors.update({f"{Q}.weight.absmax": torch.zeros(255)}), r"absmax is .*\[255\]"),
        (lambda tensors: tensors.update({f"{Q}.{STATE}": torch.zeros(9, dtype=torch.uint8)}), "is not JSON"),
    ],
)
def test_damaged_tensors_are_refused(edit: Callable[[dict[str, Tensor]], object], match: str, tmp_path: Path) -> None:
    write_bitsandbytes(tmp_path / "packed")
    change(tmp_path / "packed", edit)
    with pytest.raises(ModelFileError, match=match):
        open_source(tmp_path / "packed")


def test_a_value_beyond_the_nested_map_cannot_be(tmp_path: Path) -> None:
    """A nested absmax is a byte, its map has 256 values: every byte is one of them."""
    write_bitsandbytes(tmp_path / "packed", nested=True)
    change(tmp_path / "packed", lambda tensors: tensors[f"{Q}.weight.absmax"].fill_(255))
    assert bool(torch.isfinite(open_source(tmp_path / "packed").tensor(f"{Q}.weight")).all())
