"""GGUF files that are refused: metadata and tensors that do not fit, damaged headers, cut files."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from mixq.errors import MixqError, ModelFileError
from mixq.quantize.sources.gguf import GgufSource
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_mixtral
from tests.gguf_files import raw_config, write_gguf, write_with_tokenizer

Weights = dict[str, Tensor]


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"general.architecture": "qwen2moe"}, "the architecture is 'qwen2moe'"),
        ({"general.architecture": None}, "the architecture is None"),
        ({"llama.block_count": None}, r"have no llama\.block_count"),
        ({"llama.block_count": 3}, r"tensor 'blk\.2\.attn_norm\.weight' is missing"),
        ({"llama.block_count": 1}, r"tensor 'blk\.1\..*' is not part of the model"),
        ({"llama.block_count": 2**31}, "num_hidden_layers is 2147483648"),
        ({"llama.embedding_length": 128}, "keys of size 32, values of size 32, and rotary embedding on 64"),
        ({"llama.feed_forward_length": 128}, r"'blk\.0\.ffn_gate_exps\.weight' has shape \[4, 256, 256\]"),
        ({"llama.embedding_length": "x"}, "embedding_length is 'x'; it must be a whole number"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is .*; it must be a whole number"),
        ({"llama.attention.head_count": 0}, "head_count is 0; it must be a whole number of at least 1"),
        ({"llama.attention.head_count_kv": 3}, "not a multiple"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps is nan"),
        ({"llama.expert_count": 8}, r"tensor 'blk\.0\.ffn_gate_inp\.weight' has shape \[4, 256\]"),
        ({"llama.rope.dimension_count": 32}, "rotary embedding on 32"),
        ({"llama.attention.value_length": 128}, "size 64, values of size 128"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.type is 'yarn'"),
        ({"llama.rope.scaling.factor": 4.0}, r"rope\.scaling\.factor is 4\.0"),
        ({"llama.rope.scale_linear": 2.0}, r"rope\.scale_linear is 2\.0"),
        ({"general.alignment": 3}, r"general\.alignment 3"),
    ],
    ids=str,
)
def test_metadata_that_do_not_fit(
    metadata: dict[str, Any], match: str, checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, metadata=metadata)
    with pytest.raises(ModelFileError, match=rf"^m\.gguf.*{match}"):
        GgufSource(tmp_path / "m.gguf")


@pytest.mark.parametrize("metadata", [{"rope.scaling.type": "none"}, {"rope.scaling.factor": 1.0}])
def test_scaling_that_does_not_scale(
    metadata: dict[str, Any], checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, metadata={f"llama.{key}": value for key, value in metadata.items()})
    GgufSource(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("blk.0.attn_q.bias", np.zeros(256, np.float32), r"'blk\.0\.attn_q\.bias' is not part of the model"),
        ("rope_freqs.weight", np.full(32, 8, np.float32), "scaled rotary embeddings are not supported"),
        ("rope_freqs.weight", np.ones(32, np.float16), "scaled rotary embeddings are not supported"),
        ("output.weight", np.zeros((64, 128), np.float32), r"'output\.weight' has shape \[64, 128\]"),
        ("output.weight", np.zeros((64, 256), np.int8), r"'output\.weight' is I8, which .* does not dequantize"),
        ("rope_freqs.weight", np.ones(32, np.float32), None),
        ("blk.1.attn_rot_embd.weight", np.ones(32, np.float32), None),
    ],
)
def test_tensors_that_are_of_no_parameter(
    name: str,
    data: np.ndarray[Any, Any],
    match: str | None,
    checkpoint: tuple[Weights, dict[str, Any]],
    tmp_path: Path,
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, further={name: (data, None)})
    if match is None:
        GgufSource(tmp_path / "m.gguf")
        return
    with pytest.raises(ModelFileError, match=rf"^m\.gguf.*{match}"):
        GgufSource(tmp_path / "m.gguf")


def header(tensors: int = 0, pairs: int = 0, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + dimensions + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "has 0 bytes"),
        (b"GGUF", "has 4 bytes"),
        (header(magic=b"GGML") + bytes(64), "is not a GGUF file"),
        (header(version=1) + bytes(64), "has version 1 of GGUF"),
        (header(version=3 << 24) + bytes(64), "is big-endian"),
        (header(tensors=2**60) + bytes(64), "declares 1,152,921"),
        (header(pairs=2**60) + bytes(64), "declares 0 tensors and 1,152,921"),
        (header(pairs=1) + struct.pack("<Q", 2**63), "has a header of more than 64 MiB"),
        (header(pairs=1) + struct.pack("<Q", 1000), "ends within its header"),
        (header(pairs=1) + pair(b"k", 99, b""), "has metadata of type 99"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 0, 2**62)), "more than 64 MiB"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 8, 2**62)), "more than 64 MiB"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 12, 1000)), "ends within its header"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 9, 1) * 9), "has an array of type 9"),
        (header(pairs=2) + pair(b"k", 0, b"\1") * 2, "has 'k' twice"),
        (header(tensors=1) + info(b"t", (32,) * 5, 0, 0), "of 5 dimensions"),
        (header(tensors=1) + info(b"t", (), 0, 0), "of 0 dimensions"),
        (header(tensors=1) + info(b"t", (33,), 2, 0), r"of shape \[33\], type Q4_0"),
        (header(tensors=1) + info(b"t", (0, 4), 0, 0), r"of shape \[4, 0\], type F32"),
        (header(tensors=1) + info(b"t", (32,), 4000, 0), "has type 4000"),
        (header(tensors=1) + info(b"t", (2**40, 2**40, 2**40, 2**40), 0, 0), "the header places tensor"),
        (header(tensors=1) + info(b"t", (8,), 0, 2**63) + bytes(99), "the header places tensor"),
        (header(tensors=1) + info(b"t", (8,), 0, 8) + bytes(99), "the header places tensor"),
        (header(tensors=2) + info(b"t", (8,), 0, 0) * 2 + bytes(99), "has the tensor 't' twice"),
        (header(tensors=1) + info(b"t", (8,), 0, 0) + bytes(99), r"tensor 'token_embd\.weight' is missing"),
    ],
)
def test_a_damaged_header_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"^m\.gguf.*{match}"):
        GgufSource(tmp_path / "m.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = write_with_tokenizer(tmp_path).read_bytes()
    random = np.random.default_rng(0)
    for size in (*range(0, 600, 7), *random.integers(600, len(content), 60).tolist(), len(content) - 1000):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(ModelFileError, match=r"^cut\.gguf"):
            GgufSource(tmp_path / "cut.gguf")


def test_bytes_of_the_header_changed_end_clearly(tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "hf", hidden=32, ffn=32, layers=1, experts=2, tokenizer=False)
    write_gguf(tmp_path / "m.gguf", tensors, raw_config(tmp_path / "hf"), types="Q4_0")
    content = (tmp_path / "m.gguf").read_bytes()
    end = content.index(b"output.weight") + 64
    random = np.random.default_rng(0)
    refused: list[str] = []
    for at in range(end):
        changed = bytearray(content)
        changed[at] = random.integers(256) if at % 2 else changed[at] ^ 0x80
        (tmp_path / "m.gguf").write_bytes(changed)
        try:
            GgufSource(tmp_path / "m.gguf")
        except ModelFileError as error:
            refused.append(error.message)
    assert len(refused) > end // 2
    assert all(message.startswith("m.gguf") for message in refused)


def test_without_the_package_gguf(
    checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MixqError, match="needs the package gguf") as caught:
        GgufSource(tmp_path / "m.gguf")
    assert caught.value.hint is not None
    assert re.search(r"pip install gguf", caught.value.hint)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no\.gguf does not exist"):
        open_source(tmp_path / "no.gguf")
