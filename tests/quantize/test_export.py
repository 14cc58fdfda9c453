"""A GGUF file read back by llama.cpp's own package holds exactly what the folder holds; nothing half is ever left."""

from __future__ import annotations

import builtins
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from mixq.errors import MixqError, ModelFileError, StorageError, UsageError
from mixq.formats import int_groups
from mixq.formats.architecture import parameters
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.quantize import quantize
from mixq.quantize.export.gguf_file import GgufExport, GgufResult
from mixq.quantize.export.gguf_layout import plan
from mixq.quantize.gguf_format import block_rows
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_llama, write_tiny_mistral, write_tiny_mixtral


def export(source: Path, target: Path, type: str = "auto") -> GgufResult:
    return GgufExport(open_source(source, mixq_folders=True), target, type).run()


def read_back(path: Path, source: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the file's tensors by Hugging Face's names, float32, and their types; the permutation taken back."""
    config = open_source(source, mixq_folders=True).config
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    planned, _ = plan(open_source(source, mixq_folders=True), "auto")
    assert list(stored) == [tensor.name for tensor in planned]
    found, types = {}, {}
    for tensor in planned:
        on_disk = stored[tensor.name]
        values = gguf.quants.dequantize(on_disk.data, on_disk.tensor_type)
        assert list(reversed(on_disk.shape.tolist())) == list(tensor.shape)
        values = values.reshape(len(tensor.parameters), *tensor.parameters[0].shape)
        for i, parameter in enumerate(tensor.parameters):
            own = torch.from_numpy(np.array(values[i], dtype=np.float32))
            if parameter.role in ("q", "k"):  # llama.cpp's rows are neighbours where Hugging Face's are halves
                heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}[parameter.role]
                own = own.view(heads, -1, 2, own.shape[-1]).transpose(1, 2).reshape(own.shape)
            found[parameter.name] = own
            types[parameter.name] = on_disk.tensor_type.name
    return found, types


@pytest.mark.parametrize("write", [write_tiny_mixtral, write_tiny_mistral, write_tiny_llama])
def test_bf16_file_holds_every_weight(write: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    tensors = write(tmp_path / "source", tokenizer=False)
    result = export(tmp_path / "source", tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").stat().st_size == result.nbytes
    found, types = read_back(tmp_path / "model.gguf", tmp_path / "source")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.float()), name
        assert types[name] == ("F32" if "norm" in name or "gate.weight" in name else "BF16")


def test_float16_source_stays_float16(tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "source", dtype=torch.float16, tokenizer=False)
    export(tmp_path / "source", tmp_path / "model.gguf")
    found, types = read_back(tmp_path / "model.gguf", tmp_path / "source")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in tensors.items())
    assert types["lm_head.weight"] == "F16"


@pytest.mark.parametrize(("format", "group"), [("w4", 32), ("w4", 64), ("w8", 128)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_integer_groups_keep_their_codes(format: str, group: int, dtype: torch.dtype, tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    quantize(tmp_path / "source", tmp_path / "packed", format=format, group=group)
    packed = open_source(tmp_path / "packed", mixq_folders=True)
    source = _rounded(packed) if dtype == torch.float16 else packed
    result = GgufExport(source, tmp_path / "model.gguf").run()
    assert not any("requantized" in text for text in result.notices)
    found, types = read_back(tmp_path / "model.gguf", tmp_path / "packed")
    for parameter in parameters(packed.config):
        expected = source.tensor(parameter.name).float()
        scheme = packed.kept(parameter) if parameter.quantizable else None
        if scheme is None:
            assert torch.equal(found[parameter.name], expected)
            continue
        assert types[parameter.name] == {"w4": "Q4_0", "w8": "Q8_0"}[scheme.name]
        if dtype == torch.float16:
            assert torch.equal(found[parameter.name], expected), parameter.name
        else:  # a bfloat16 scale below 2**-14 is rounded to 2**-24
            difference = (found[parameter.name] - expected).abs().max()
            assert difference <= 2.0**-25 * (8 if scheme.name == "w4" else 128), parameter.name


def _rounded(source: Any) -> Any:
    """Return the source as it would be with float16 scales."""
    original = source.packed

    def packed(module: str) -> PackedLinear:
        linear = original(module)
        tensors = dict(linear.tensors)
        tensors["weight_scale"] = tensors["weight_scale"].to(torch.float16)
        return PackedLinear(linear.scheme, linear.shape, tensors)

    plain = source.tensor

    def tensor(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        return packed(module).dequantize() if module in source._layout.packed else plain(name)

    source.packed, source.tensor = packed, tensor
    return source


def test_w4_in_q8_0_is_exact_too(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    quantize(tmp_path / "source", tmp_path / "packed", format="w4")
    source = _rounded(open_source(tmp_path / "packed", mixq_folders=True))
    GgufExport(source, tmp_path / "model.gguf", "q8_0").run()
    found, types = read_back(tmp_path / "model.gguf", tmp_path / "packed")
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    assert types[name] == "Q8_0"
    assert torch.equal(found[name], source.tensor(name))


def test_nl4_is_requantized_close_to_its_weights_and_that_is_said(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    quantize(tmp_path / "source", tmp_path / "packed")
    result = export(tmp_path / "packed", tmp_path / "model.gguf")
    assert any("w1, w2, w3: requantized from nl4:32 to Q4_0" in text for text in result.notices)
    found, types = read_back(tmp_path / "model.gguf", tmp_path / "packed")
    source = open_source(tmp_path / "packed", mixq_folders=True)
    for parameter in parameters(source.config):
        expected = source.tensor(parameter.name).float()
        error = float((found[parameter.name] - expected).norm() / expected.norm())
        limit = {"Q4_0": 0.1, "Q8_0": 1e-3, "BF16": 0, "F32": 0}[types[parameter.name]]
        assert error <= limit, parameter.name
    assert types["model.layers.0.self_attn.k_proj.weight"] == "Q8_0"


def test_quantized_types_beat_the_packages_own(tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    export(tmp_path / "source", tmp_path / "model.gguf", "q4_0")
    found, types = read_back(tmp_path / "model.gguf", tmp_path / "source")
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    weight = tensors[name].float()
    q4_0 = gguf.GGMLQuantizationType.Q4_0
    theirs = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), q4_0), q4_0))
    assert types[name] == "Q4_0"
    assert (found[name] - weight).square().sum() < 0.9 * (theirs - weight).square().sum()


def test_rows_that_do_not_divide_stay_unquantized(tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "source", ffn=240, tokenizer=False)
    result = export(tmp_path / "source", tmp_path / "model.gguf", "q8_0")
    assert any("w2: rows are not multiples of 32" in text for text in result.notices)
    found, types = read_back(tmp_path / "model.gguf", tmp_path / "source")
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    assert types[name] == "BF16"
    assert torch.equal(found[name], tensors[name].float())


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_the_packages(bits: int) -> None:
    """Every code value at every place of a block, negative scales too."""
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8)
    q = torch.stack([codes.roll(i).repeat(32)[:64] for i in range(len(codes))])
    scale = torch.linspace(-3, 3, 2 * len(q)).to(torch.float16).reshape(-1, 2)
    packed = PackedLinear(Scheme(f"w{bits}", 32), tuple(q.shape), int_groups.pack(q, scale, bits))
    name = "Q4_0" if bits == 4 else "Q8_0"
    rows, type = block_rows(packed, name).numpy(), gguf.GGMLQuantizationType[name]
    assert torch.equal(torch.from_numpy(gguf.quants.dequantize(rows, type)), packed.dequantize())


def test_scale_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    quantize(tmp_path / "source", tmp_path / "packed", format="w8")
    source: Any = open_source(tmp_path / "packed", mixq_folders=True)
    original = source.packed

    def packed(module: str) -> PackedLinear:
        linear = original(module)
        return PackedLinear(
            linear.scheme, linear.shape, dict(linear.tensors) | {"weight_scale": linear.tensors["weight_scale"] * 1e9}
        )

    source.packed = packed
    with pytest.raises(ModelFileError, match=r"layers.0.self_attn.q_proj.weight: a scale is too large for float16"):
        GgufExport(source, tmp_path / "out" / "model.gguf").run()
    assert list((tmp_path / "out").iterdir()) == []


def test_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    source: Any = open_source(tmp_path / "source")
    original = source.tensor
    source.tensor = lambda name: original(name) * (1e9 if name == "lm_head.weight" else 1)
    with pytest.raises(ModelFileError, match=r"lm_head.weight: .* beyond F16"):
        GgufExport(source, tmp_path / "model.gguf", "f16").run()
    assert not list(tmp_path.glob("*.gguf*"))


def test_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)

    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "model.gguf").exists()
        if done > total // 2:
            assert (tmp_path / "model.gguf.partial").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GgufExport(open_source(tmp_path / "source"), tmp_path / "model.gguf").run(interrupt)
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_merged_experts_are_never_whole_in_memory(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", hidden=512, ffn=4096, layers=1, experts=8, tokenizer=False)
    begun, most = anonymous_memory(), 0

    def look(done: int, total: int) -> None:
        nonlocal most
        most = max(most, anonymous_memory())

    GgufExport(open_source(tmp_path / "source"), tmp_path / "model.gguf", "q8_0").run(look)
    assert most - begun < 48e6  # eight experts' matrix is 67 MB in float32


def anonymous_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_full_disk_is_told_in_bytes_before_a_weight_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"bytes, but only 1,000 are free"):
        export(tmp_path / "source", tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_what_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    source = open_source(tmp_path / "source")
    with pytest.raises(UsageError, match=r"is a folder"):
        GgufExport(source, tmp_path)
    with pytest.raises(UsageError, match=r"Did you mean 'q4_0'"):
        GgufExport(source, tmp_path / "model.gguf", "q4_1")
    imported = builtins.__import__

    def without_gguf(name: str, *arguments: Any) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(MixqError, match=r"needs the package gguf") as raised:
        GgufExport(source, tmp_path / "model.gguf")
    assert raised.value.hint == "Install it: pip install gguf"
